"""The program as a process: signals, slow clients, the command line."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from .conftest import asked

pytestmark = pytest.mark.slow  # every test starts a process or shares one

CHAT = "/v1/chat/completions"


class Program:
    """`vistoken serve` in a process of its own on a free port."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vistoken", "serve", "-m", "pico", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                **environment,
            },
        )
        self.lines = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(240), self.log
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log)
        assert found is not None, self.log
        self.port = int(found[1])

    @property
    def log(self):
        return "".join(self.lines)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if "(Ctrl-C stops)" in line:
                self._ready.set()
        self._ready.set()

    def connect(self, timeout=120):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, body, **headers):
        connection = self.connect()
        connection.request(
            "POST", CHAT, json.dumps(body), {"Content-Type": "application/json", **headers}
        )
        return connection.getresponse()

    def metric(self, name):
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return float(re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)[1])

    def wait_for(self, name, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition(value := self.metric(name)):
            assert time.monotonic() < end, (name, value)
            time.sleep(0.05)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(120)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def serving(*arguments, **environment):
    program = Program(*arguments, **environment)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


@pytest.fixture(scope="module")
def program():
    with serving("--max-rows", "4") as program:
        yield program


def test_it_answers(program):
    answer = program.ask(asked("What?"))
    assert answer.status == 200
    assert json.loads(answer.read())["usage"]["completion_tokens"] >= 1


def test_a_client_that_leaves_in_mid_stream_frees_its_place(program):
    connection = program.connect()
    body = asked("hi", max_tokens=3000, ignore_eos=True, stream=True)
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    assert program.metric("vistoken_engine_rows") == 1
    answer.close()
    connection.close()
    program.wait_for("vistoken_engine_rows", lambda rows: rows == 0)
    assert program.metric("vistoken_engine_tokens_total") < 3000


def test_a_client_that_leaves_before_its_answer_frees_its_place(program):
    connection = program.connect()
    body = asked("hi", max_tokens=3000, ignore_eos=True)
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    program.wait_for("vistoken_engine_rows", lambda rows: rows == 1)
    connection.sock.close()
    connection.close()
    program.wait_for("vistoken_engine_rows", lambda rows: rows == 0)


def test_garbage_on_the_line(program):
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"\x00" * 9000,
        b"POST / HTTP/9\r\n",
    ):
        with socket.create_connection(("127.0.0.1", program.port), 30) as line:
            line.sendall(garbage)
            line.shutdown(socket.SHUT_WR)
            line.recv(100)
    assert program.ask(asked("What?")).status == 200
    assert "Traceback" not in program.log


def test_signals_finish_running_answers_and_refuse_new_ones():
    with serving() as program:
        body = asked("hi", max_tokens=400, ignore_eos=True, stream=True)
        answer = program.ask(body)
        assert answer.readline().startswith(b"data: ")
        whole = []
        reader = threading.Thread(target=lambda: whole.append(answer.read()))
        reader.start()
        program.process.send_signal(signal.SIGTERM)
        program.process.wait(120)
        reader.join(30)
        assert program.process.returncode == 0
        text = whole[0].decode()
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in text
        assert "Traceback" not in program.log
        with pytest.raises(ConnectionRefusedError):
            program.ask(asked("hi"))


def test_keys_from_a_file_are_asked_for_and_never_logged(tmp_path):
    (tmp_path / "keys").write_text("top-secret-key\nother-key\n")
    with serving("--api-key-file", str(tmp_path / "keys")) as program:
        assert program.ask(asked("hi")).status == 401
        assert program.ask(asked("hi"), Authorization="Bearer top-secret-kez").status == 401
        assert program.ask(asked("hi"), Authorization="Bearer other-key").status == 200
        assert program.end(signal.SIGINT) == 0
    assert "secret" not in program.log
    assert "other-key" not in program.log
