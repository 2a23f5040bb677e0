# The server on a CPU. From the repository's root:
#
#   docker build -f deploy/cpu.Dockerfile -t vistoken:cpu --build-arg TORCH_INDEX=URL .
#   docker run --rm -p 127.0.0.1:8000:8000 -e VISTOKEN_API_KEYS=... vistoken:cpu
#
# TORCH_INDEX is the address of PyTorch's CPU builds, from the "Get started" page; without it pip
# takes the default build, gigabytes of CUDA included.
FROM python:3.11-slim

ARG TORCH_INDEX=""
WORKDIR /opt/vistoken
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VISTOKEN_HOME=/var/lib/vistoken
COPY constraints.txt ./
RUN torch="$(grep '^torch==' constraints.txt)" \
    && pip install "$torch" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
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
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["vistoken", "serve", "--host", "0.0.0.0"]
CMD ["--model", "nano"]
