# The server on NVIDIA GPUs (needs the NVIDIA container toolkit). From the repository's root:
#
#   docker build -f deploy/cuda.Dockerfile -t vistoken:cuda .
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -e VISTOKEN_API_KEYS=... vistoken:cuda
#
# PyTorch's default build for Linux brings its own CUDA libraries; the host brings the driver.
FROM python:3.11-slim

WORKDIR /opt/vistoken
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VISTOKEN_HOME=/var/lib/vistoken
COPY constraints.txt ./
RUN pip install "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt '.[serve,nano]'
RUN useradd --system --create-home --home-dir /var/lib/vistoken vistoken
USER vistoken
# nano's weights become part of the image: the container needs no network
RUN vistoken data fetch nano
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["vistoken", "serve", "--host", "0.0.0.0"]
CMD ["--model", "nano", "--device", "cuda"]
