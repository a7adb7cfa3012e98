"""A loopback server of a real, tiny reward model: `with serve_rewards(folder) as server:`.

It speaks what the makers document: vLLM's GET /v1/models, POST /classify and POST /pooling,
SGLang's POST /classify, OpenRLHF's POST /get_reward. Rewards are computed by stock transformers,
one text alone, at its last token. `server.faults` is a list of what goes wrong with the next
requests for rewards: a status, or one of `cut`, `reset`, `one too few`, `long`, `deep`.
"""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROUTES = {
    "vLLM": ("/classify", "/pooling"),
    "vLLM, pooling alone": ("/pooling",),
    "vLLM, a chat model": (),
    "SGLang": ("/classify",),
    "OpenRLHF": ("/get_reward",),
}


@dataclass
class RewardsServer:
    """What the server does, and what it was asked."""

    folder: Path
    software: str = "vLLM"
    models: dict[str, int | None] = field(default_factory=lambda: {"rm": 512})  # name -> limit
    lists_models: bool = True  # whether it answers GET /v1/models
    activation: bool = False  # whether it applies a sigmoid unless it is asked not to
    softmax: bool = False  # the same, over the reward and another label that is 1
    always_sigmoid: bool = False  # an old one, which does not know `use_activation`
    reversed: bool = False  # whether it answers a request's texts in the other order
    moved: float = 0.0  # added to every reward
    logits: int = 1
    template: str | None = None  # another chat template than the checkpoint's
    key: str = ""
    faults: list[int | str] = field(default_factory=list)
    url: str = ""
    bodies: list[dict] = field(default_factory=list)  # of the requests for rewards
    together: threading.Barrier | None = None  # so many requests are answered at the same time

    def __post_init__(self):
        self.model = AutoModelForSequenceClassification.from_pretrained(self.folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.lock = threading.Lock()

    def reward(self, ids: list[int]) -> float:
        with torch.inference_mode(), self.lock:
            body = self.model.base_model(input_ids=torch.tensor([ids]))
            logits = self.model.score(body.last_hidden_state[0, -1])
        return logits[-1].item() + self.moved

    def ids_of(self, body: dict) -> list[list[int]]:
        """The token ids of what vLLM is asked about."""
        if "messages" not in body:
            return body["input"]
        text = self.tokenizer.apply_chat_template(
            body["messages"], chat_template=self.template, tokenize=False
        )
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def answer(self, path: str, body: dict) -> dict | list:
        """The body of the answer to a request for rewards."""
        if self.software == "OpenRLHF":
            texts = [self.tokenizer(text, add_special_tokens=False) for text in body["query"]]
            rewards = [self.reward(text["input_ids"]) for text in texts]
            return {"rewards": rewards, "scores": rewards, "extra_logs": {}}
        if self.software == "SGLang":
            return [{"embedding": [self.reward(ids)]} for ids in body["input_ids"]]
        sigmoid = self.activation and body.get("use_activation") is not False
        rows = []
        for index, ids in enumerate(self.ids_of(body)):
            reward = self.reward(ids)
            if sigmoid or self.always_sigmoid:
                reward = 1 / (1 + math.exp(-reward))
            if self.softmax and body.get("use_activation") is not False:
                reward = 1 / (1 + math.exp(1 - reward))
            numbers = [0.0] * (self.logits - 1) + [reward]
            if path == "/pooling":
                rows.append({"index": index, "object": "pooling", "data": numbers})
            else:
                row = {"index": index, "label": "LABEL_0", "probs": numbers}
                rows.append({**row, "num_classes": self.logits})
        if self.reversed:
            rows.reverse()
        return {"id": "x", "object": "list", "model": body["model"], "data": rows}


@contextmanager
def serve_rewards(folder: Path, **options) -> Iterator[RewardsServer]:
    """Serve a model from threads of this process. Options are `RewardsServer`'s."""
    rewards_server = RewardsServer(folder, **options)

    class Handler(RewardsHandler):
        served = rewards_server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    rewards_server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield rewards_server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class RewardsHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    served: RewardsServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if not self.may_ask():
            return
        lists_models = self.served.lists_models and self.served.software != "OpenRLHF"
        if self.path != "/v1/models" or not lists_models:
            self.send(404, {"detail": "Not Found"})
            return
        rows = []
        for name, limit in self.served.models.items():
            rows.append({"id": name, "object": "model", "max_model_len": limit})
        self.send(200, {"object": "list", "data": rows})

    def do_POST(self):
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.may_ask():
            return
        if self.path not in ROUTES[served.software]:
            self.send(404, {"detail": "Not Found"})
            return
        if served.software == "SGLang" and "input_ids" not in body:
            self.send(400, {"error": {"message": "text or input_ids should be provided"}})
            return
        fault = None
        with served.lock:
            served.bodies.append(body)
            if served.faults:
                fault = served.faults.pop(0)
        if served.together is not None and len(served.bodies) > 1:  # the first one is a question
            served.together.wait()
        self.answer(body, fault)

    def answer(self, body: dict, fault: int | str | None):
        if isinstance(fault, int):
            self.send(fault, {"error": {"message": "EngineCore is busy"}})
            return
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        answer = self.served.answer(self.path, body)
        if fault == "one too few":
            answer["data"].pop()
        if fault == "long":
            answer["padding"] = " " * 20_000_000
        if fault == "deep":
            answer = "@"
        self.send(200, answer, cut=fault == "cut")

    def may_ask(self) -> bool:
        if self.served.key and self.headers["Authorization"] != f"Bearer {self.served.key}":
            self.send(401, {"error": "Unauthorized"})
            return False
        return True

    def send(self, status: int, body: dict | list, cut: bool = False):
        text = json.dumps(body).replace('"@"', "[" * 100_000).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if cut:
            text = text[: len(text) // 2]
            self.close_connection = True
        self.wfile.write(text)

    def log_message(self, *args):
        pass
