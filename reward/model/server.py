"""Ask a server that somebody else runs for rewards: `Server(url, decode).rewards(ids)`.

    vLLM        POST /classify or /pooling   {"model", "input": token ids}
    SGLang      POST /classify               {"input_ids": token ids}
    OpenRLHF    POST /get_reward             {"query": texts, "prompts": texts}

Which of them answers is found out by asking, unless the address ends in the path. Requests run
beside each other, a request that fails for a while is repeated, and rewards come back in the order
of the texts. No torch is imported.
"""

import http.client
import json
import math
import os
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from reward.data.shown import shown
from reward.model.hub import ModelError

KEY_VARIABLE = "ENDPOINT_API_KEY"

TEXTS_OF_A_REQUEST = 16
REQUESTS_AT_ONCE = 8
TRIES = 8  # of one request, over about two minutes
FIRST_TRIES = 3  # of a server that was never heard of: its address may be wrong
FIRST_WAIT = 1.0  # seconds before the second try; every later wait is twice as long
LONGEST_WAIT = 60.0
TIMEOUT = 300.0  # seconds; a large model may be busy with the requests before
MOST_BYTES = 20_000_000  # of an answer, which is in memory as a whole

# The server is busy or restarts, or a proxy before it lost it: the same request may succeed later.
PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
NOT_ALLOWED = (401, 403)


class EndpointError(ModelError):
    """A server gives no rewards. The message names the server, and what it said."""


class PassingFault(Exception):
    """A request failed in a way that may be over in a moment."""

    def __init__(self, sentence: str, wait: float = 0.0):
        super().__init__(sentence)
        self.wait = wait  # seconds that the server asks for


class RefusedRequest(EndpointError):
    """The server answers, and refuses the request: another try would be refused too."""

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status


# --- What each kind of server is asked, and what it answers ---------------------------------------


@dataclass(frozen=True)
class Route:
    """One way to ask for rewards."""

    software: str
    path: str
    question: Callable[[str, list], dict]  # (name of the model, texts) -> the request's body
    rewards: Callable[[Any], list]  # the answer's body -> the logits of each text, or its reward
    reads_text: bool = False  # whether texts are strings, which the server encodes by itself
    reads_messages: bool = False  # whether it renders a conversation by itself, if asked to
    # What the body says so that the server leaves out the sigmoid.
    raw: tuple[tuple[str, Any], ...] = ()


def in_order(rows: list[dict]) -> list[dict]:
    """Return the answers to a request's texts by their `index`, which must be complete."""
    rows = sorted(rows, key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(len(rows))):
        raise ValueError("its answers are not numbered 0, 1, 2, ...")
    return rows


NO_ACTIVATION = (("use_activation", False),)
ROUTES = (
    Route(
        software="vLLM",
        path="/classify",
        question=lambda model, ids: {"model": model, "input": ids},
        rewards=lambda answer: [row["probs"] for row in in_order(answer["data"])],
        reads_messages=True,
        raw=NO_ACTIVATION,
    ),
    Route(
        software="vLLM",
        path="/pooling",
        question=lambda model, ids: {"model": model, "input": ids},
        rewards=lambda answer: [row["data"] for row in in_order(answer["data"])],
        reads_messages=True,
        raw=NO_ACTIVATION,
    ),
    Route(
        software="SGLang",
        path="/classify",
        question=lambda model, ids: {"input_ids": ids},
        rewards=lambda answer: [row["embedding"] for row in answer],
    ),
    Route(
        software="OpenRLHF",
        path="/get_reward",
        question=lambda model, texts: {"query": texts, "prompts": texts},
        rewards=lambda answer: answer["rewards"],
        reads_text=True,
    ),
)


def reward_of(answer: Any) -> float:
    """Return the reward in what a server says of one text: a number, one label, or two.

    Raises:
        ValueError: It is something else, such as a reward for each token.
    """
    if isinstance(answer, list):
        if len(answer) not in (1, 2):
            raise ValueError(
                f"it gives {len(answer)} numbers for a text; a reward model gives one (or two, "
                "reward = logit 1)"
            )
        answer = answer[-1]
    if answer is None:  # what some servers write for NaN
        return math.nan
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise ValueError(f"it gives a {type(answer).__name__} where a reward belongs")
    return float(answer)


def whole_answer(response: BinaryIO) -> bytes:
    """Return what a server answers. Raises PassingFault for an answer without an end."""
    answer = response.read(MOST_BYTES + 1)
    if len(answer) > MOST_BYTES:
        raise PassingFault(f"its answer has more than {MOST_BYTES:,} bytes")
    return answer


def words_of(body: bytes) -> str:
    """Return what the body of an answer says of an error, in a line.

    Of JSON it is only the message: what stands beside it may repeat the texts that were sent.
    """
    text = body.decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return textwrap.shorten(text, 200)
    if isinstance(answer, dict):
        answer = answer.get("error") or answer.get("detail") or answer
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if isinstance(answer, dict):
        answer = answer.get("message") or answer.get("msg")
    if isinstance(answer, str):
        return textwrap.shorten(answer, 300)
    return ""


# --- The server -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedModel:
    """What `GET /v1/models` says of a model."""

    name: str = ""
    limit: int | None = None  # the longest input in tokens


class Server:
    """A server that gives rewards.

    Args:
        url: Its address, with or without `http://`, `/v1` or the path of a route. A query
            `?model=NAME` picks one of several models.
        decode: Makes the text of token ids, for servers that read texts.

    Attributes:
        route: How it is asked, once `connect` has found out.
        model: The model that it serves.

    Raises:
        EndpointError: The address cannot be read.
    """

    def __init__(self, url: str, decode: Callable[[Sequence[int]], str]):
        if "://" not in url:
            url = f"http://{url}"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"{url}: no address of a server, such as http://localhost:8000")
        path = parts.path.rstrip("/")
        self.routes = ROUTES
        for named in {route.path for route in ROUTES}:
            if path.endswith(named):
                self.routes = tuple(route for route in ROUTES if route.path == named)
                path = path.removesuffix(named)
        self.base = f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1')}"
        self.named_model = parse_qs(parts.query).get("model", [None])[0]
        self.decode = decode
        self.tries = FIRST_TRIES
        self.said_repetition = False
        self.stopped = Event()
        self.route: Route | None = None
        self.model = ServedModel()

    @property
    def described(self) -> str:
        """The server in a few words, for messages."""
        if self.route is None:
            return self.base
        words = f"{self.base} ({self.route.software}, {self.route.path}"
        if self.model.name:
            words += f", model {self.model.name}"
        return f"{words})"

    def connect(self, sample: Sequence[int]) -> None:
        """Find out which model is served, and which route answers.

        Args:
            sample: Token ids of a text that the model can read.

        Raises:
            EndpointError: No server answers, or it gives no rewards.
        """
        if not all(route.reads_text for route in self.routes):
            self.model = self._served_model()
        answers = []
        for route in self.routes:
            try:
                self._ask_for_rewards(route, [sample])
            except RefusedRequest as refused:
                if refused.status in NOT_ALLOWED:
                    raise
                answers.append(f"{route.software}'s {route.path}: {refused}")
            except EndpointError as error:
                answers.append(f"{route.software}'s {route.path}: {error}")
            else:
                self.route = route
                self.tries = TRIES
                return
        raise EndpointError(
            f"{self.base} gives no rewards. Needed is vLLM's /classify or /pooling (start it with "
            "--runner pooling), SGLang's /classify, or OpenRLHF's /get_reward. Asked were "
            + "; ".join(answers)
        )

    def rewards(self, texts: list[Sequence[int]], raw: bool = True) -> Iterator[float]:
        """Yield the rewards of texts, in order, while later texts are still computed.

        Args:
            texts: The token ids of each text.
            raw: Whether the server is asked to leave out a sigmoid. False: it answers as it answers
                everybody.

        Raises:
            EndpointError: A request failed for good.
        """
        starts = range(0, len(texts), TEXTS_OF_A_REQUEST)
        requests = [texts[start : start + TEXTS_OF_A_REQUEST] for start in starts]
        pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        self.stopped.clear()
        try:
            ask = partial(self._ask_for_rewards, self.route, raw=raw)
            for answer in pool.map(ask, requests):
                yield from answer
        except BaseException:
            self.stopped.set()  # nobody waits for a repetition any more
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def reward_of_messages(self, messages: list[dict]) -> float:
        """Return the reward of a conversation that the server renders and encodes by itself.

        Raises:
            EndpointError: The server gives none.
        """
        body = {"model": self.model.name, "messages": messages}
        (reward,) = self._rewards_in(self.route, self._ask(self.route.path, body), 1)
        return reward

    def _ask_for_rewards(
        self, route: Route, texts: list[Sequence[int]], raw: bool = True
    ) -> list[float]:
        """Return the rewards of one request's texts."""
        sent = [list(ids) for ids in texts]
        if route.reads_text:
            sent = [self.decode(ids) for ids in texts]
        body = route.question(self.model.name, sent)
        if raw:
            body |= dict(route.raw)
        return self._rewards_in(route, self._ask(route.path, body), len(texts))

    def _rewards_in(self, route: Route, answer: Any, count: int) -> list[float]:
        """Return the rewards that an answer holds, as many as texts were sent."""
        try:
            rewards = [reward_of(one) for one in route.rewards(answer)]
        except ValueError as error:
            raise EndpointError(f"{self.base}{route.path}: {error}") from None
        except (KeyError, TypeError, IndexError, AttributeError):
            raise EndpointError(
                f"{self.base}{route.path} answers in a form that is not {route.software}'s"
            ) from None
        if len(rewards) != count:
            raise EndpointError(
                f"{self.base}{route.path} gives {len(rewards)} rewards for {count} texts"
            )
        return rewards

    def _served_model(self) -> ServedModel:
        """Return what the server says of its model; the name alone where it has no such list."""
        unlisted = ServedModel(self.named_model or "")
        try:
            answer = self._ask("/v1/models")
        except RefusedRequest as refused:
            if refused.status in NOT_ALLOWED:
                raise
            return unlisted
        served = {}
        try:
            for row in answer["data"]:
                served[row["id"]] = ServedModel(row["id"], row.get("max_model_len"))
        except (KeyError, TypeError, AttributeError):
            return unlisted
        if self.named_model in served:
            return served[self.named_model]
        if len(served) == 1 and self.named_model is None:
            return next(iter(served.values()))
        raise EndpointError(
            f"{self.base} serves {', '.join(served) or 'no model'}; name one of them: "
            f"{self.base}?model=NAME"
        )

    # --- One request ------------------------------------------------------------------------------

    def _ask(self, path: str, body: dict | None = None) -> Any:
        """Return the server's answer to a request, which is repeated while it fails for a while.

        Raises:
            RefusedRequest: The server refuses it.
            EndpointError: It failed as often as it is tried.
        """
        wait = FIRST_WAIT
        for tried in range(1, self.tries + 1):
            try:
                return self._ask_once(path, body)
            except PassingFault as fault:
                sentence = f"{self.base}{path}: {fault}"
                seconds = min(max(wait, fault.wait), LONGEST_WAIT)
            if tried < self.tries:
                self._say_repetition(sentence)
                if self.stopped.wait(seconds):
                    break
            wait *= 2
        raise EndpointError(f"{sentence}; tried {tried} times")

    def _say_repetition(self, sentence: str) -> None:
        """Say once that a request is repeated, so that a bar that stands still is understood."""
        if not self.said_repetition:
            self.said_repetition = True
            print(shown(f"{sentence}; trying again"), file=sys.stderr)

    def _ask_once(self, path: str, body: dict | None) -> Any:
        request = urllib.request.Request(self.base + path)
        request.add_header("Accept", "application/json")
        if os.environ.get(KEY_VARIABLE):
            request.add_header("Authorization", f"Bearer {os.environ[KEY_VARIABLE]}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return json.loads(whole_answer(response))
        except urllib.error.HTTPError as error:
            raise self._fault_of(path, error) from None
        except urllib.error.URLError as error:
            raise PassingFault(f"cannot be reached ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            words = str(error) or type(error).__name__
            raise PassingFault(f"the connection broke ({words})") from None
        except (ValueError, RecursionError):
            raise PassingFault("its answer is no JSON, or was cut") from None

    def _fault_of(self, path: str, error: urllib.error.HTTPError) -> Exception:
        """Return what an answer with an error's status means."""
        with error:
            try:
                words = words_of(error.read(MOST_BYTES))
            except (OSError, http.client.HTTPException):
                words = ""
        sentence = f"it answers {error.code} {error.reason}"
        if words:
            sentence += f": {words}"
        if error.code in PASSING_STATUSES:
            seconds = error.headers.get("Retry-After", "")
            wait = 0.0
            if seconds.isdecimal():
                wait = float(seconds)
            return PassingFault(sentence, wait)
        if error.code in NOT_ALLOWED:
            sentence += f"; if it wants a key, give it as {KEY_VARIABLE}=... in the environment"
        return RefusedRequest(f"{self.base}{path}: {sentence}", error.code)
