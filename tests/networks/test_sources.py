from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from reldistill.core.checks import UserError
from reldistill.networks import sources
from reldistill.networks.zoo import load_network


class Forbidding(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Forbidding) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def dead_address(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_reachable_even_where_it_refuses_to_talk(server: str) -> None:
    assert sources._reachable(server)


def test_not_reachable(dead_address: str) -> None:
    assert not sources._reachable(dead_address)


@pytest.mark.parametrize("name", ["test_resnet", "hf-hub:someone/something"])
def test_without_a_connection_the_message_comes_at_once(
    name: str, tmp_path: Path, dead_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", dead_address)
    before = (socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE)
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"could not be downloaded \(.*--teacher-weights") as caught:
        load_network(
            name, num_classes=1000, pretrained=True, role="teacher", arguments={"cache_dir": str(tmp_path / "cache")}
        )
    assert time.perf_counter() - started < 15
    assert "\n" not in str(caught.value)
    assert (socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE) == before


def test_torchvision_without_a_connection(tmp_path: Path, dead_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", dead_address)
    monkeypatch.delenv("no_proxy")
    with pytest.raises(UserError, match=r"could not be downloaded \(URLError"):
        load_network("squeezenet1_1", num_classes=1000, pretrained=True, role="teacher")


FAMILIES = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "squeezenet1_0": "classifier.1",
    "swin_t": "head",
    "vit_b_32": "heads.head",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_classifier_of_torchvisions_networks_is_found(name: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, **({"init_weights": False} if name == "inception_v3" else {}))
        before = dict(network.named_modules())
        sources._replace_classifier(network, classes=1000, num_classes=7, what=name)
    changed = [path for path, module in network.named_modules() if before[path] is not module]
    assert changed == [FAMILIES[name]]
    fresh = network.get_submodule(FAMILIES[name])
    assert fresh.weight.shape == (7, *before[FAMILIES[name]].weight.shape[1:])
    assert (fresh.bias is None) == (before[FAMILIES[name]].bias is None)


def test_no_classifier_to_replace() -> None:
    with pytest.raises(UserError, match="found no layer of 1000 outputs"):
        sources._replace_classifier(nn.Linear(2, 3), classes=1000, num_classes=7, what="student x")


def test_torchvisions_auxiliary_heads_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_network("googlenet", num_classes=5, image_size=32).module
    assert network.train()(torch.rand(2, 3, 64, 64)).shape == (2, 5)
