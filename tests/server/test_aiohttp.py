"""What recon uses of aiohttp that aiohttp does not promise."""

import ast

import aiohttp
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from tests.harness import ROOT

# What recon uses of aiohttp that aiohttp does not promise, by class: all of it.
PRIVATE = {
    web.RequestHandler: {"_current_request", "_messages", "_request_count"},
    BaseProtocol: {"_loop", "_reading_paused", "_upgraded"},
    web.AppRunner: {"_make_server"},
    web.BaseRequest: {"_client_max_size"},
    web.StreamResponse: {"_keep_alive"},
}


def test_what_aiohttp_does_not_promise() -> None:
    """Every private attribute of aiohttp in use is named here, and is there; so pyproject.toml allows one version."""
    for owner, names in PRIVATE.items():
        for name in names:
            assert hasattr(owner, name) or name in {"_keep_alive", "_client_max_size"}, (owner, name)
    assert make_mocked_request("GET", "/", client_max_size=7)._client_max_size == 7
    assert "_keep_alive" in web.StreamResponse.__dict__ or web.StreamResponse()._keep_alive is None
    assert _used() == set().union(*PRIVATE.values())
    version = aiohttp.__version__.rpartition(".")[0]
    major, minor = version.split(".")
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"aiohttp>={version},<{major}.{int(minor) + 1}"' in project


def _used() -> set[str]:
    """The private attributes that recon's modules take from objects of a class that is not their own."""
    used = set()
    for path in (ROOT / "recon").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if not any(
            isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiohttp") for node in tree.body
        ):
            continue
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        own -= {"_make_server"}
        own |= {
            target.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Attribute)
        } - {"_keep_alive", "_client_max_size"}
        slots = {
            each.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and any(isinstance(it, ast.Name) and it.id == "__slots__" for it in node.targets)
            for each in ast.walk(node.value)
            if isinstance(each, ast.Constant)
        }
        used |= (
            {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            }
            - own
            - slots
        )
    return used
