"""The face of the package: what it exports, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from core_fakes import run_python

import astore
import astore.errors
import astore.events


def test_all_is_what_there_is() -> None:
    """Every public name of the package is in ``__all__``, in order, and nothing else is."""
    exported = [name for name in astore.__all__ if name.isupper()] + [
        name for name in astore.__all__ if not name.isupper()
    ]
    assert exported == sorted(astore.__all__, key=lambda name: (not name.isupper(), name))
    assert len(set(astore.__all__)) == len(astore.__all__)
    there = {name for name in dir(astore) if not name.startswith("_") and not inspect.ismodule(getattr(astore, name))}
    assert set(astore.__all__) == there


def test_the_type_checker_sees_what_there_is() -> None:
    """What is imported for the type checker alone is what the lazy names turn out to be."""
    tree = ast.parse(Path(astore.__file__).read_text())
    block, _lazy = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        seen.update({alias.name: node.module for alias in node.names})
    assert set(seen) == set(astore.__all__)
    for name, module in seen.items():
        assert getattr(astore, name) is getattr(importlib.import_module(module), name), name


def test_a_name_imports_no_more_than_it_needs() -> None:
    """The package alone imports next to nothing, and an error or a record no event loop; a module is there as before."""
    code = (
        "import sys, astore\n"
        "assert 'typing' not in sys.modules and not [name for name in sys.modules if name.startswith('astore.') "
        "and name != 'astore.deferred'], sys.modules\n"
        "astore.DefinitionError, astore.PoolDef, astore.events\n"
        "astore.PoolDef.from_xml(\"<pool type='dir'><name>a</name><target><path>/a</path></target></pool>\")\n"
        "assert not {'structlog', 'rich', 'anyio', 'astore.manager'} & set(sys.modules)\n"
        "from astore import *\n"
        "assert Manager is astore.Manager and 'structlog' not in sys.modules"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_there() -> None:
    """The lazy names behave as a module's: an AttributeError, a complete dir(), and classes that can be pickled."""
    with pytest.raises(AttributeError, match="module 'astore' has no attribute 'nonsense'"):
        _ = astore.nonsense  # type: ignore[attr-defined]
    assert set(astore.__all__) <= set(dir(astore))
    assert pickle.loads(pickle.dumps(astore.PoolState.RUNNING)) is astore.PoolState.RUNNING
    assert pickle.loads(pickle.dumps(astore.Manager)) is astore.Manager


def _untyped(module: Path) -> list[str]:
    """The public attributes that a module's public classes make of an expression, and give no type."""
    found = []
    for one in ast.walk(ast.parse(module.read_text())):
        if not isinstance(one, ast.ClassDef) or one.name.startswith("_"):
            continue
        typed = {
            ast.unparse(node.target).removeprefix("self.") for node in ast.walk(one) if isinstance(node, ast.AnnAssign)
        }
        made = [node for node in ast.walk(one) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        for node in (node for function in made for node in ast.walk(function) if isinstance(node, ast.Assign)):
            plain = isinstance(node.value, ast.Constant | ast.Name | ast.UnaryOp)
            names = [ast.unparse(target) for whole in node.targets for target in getattr(whole, "elts", [whole])]
            public = {name.removeprefix("self.") for name in names if name.startswith("self.") and name[5] != "_"}
            found += [] if plain else [f"{module.name}: {one.name}.{name}" for name in public - typed]
    return found


def test_public_attributes_have_types() -> None:
    """Type checkers that infer differently agree on each; tests/test_typing.py counts them by pyright."""
    root = Path(__file__).parent.parent
    modules = [*root.glob("astore/**/*.py"), *root.glob("plugins/*/astore_*/**/*.py")]
    assert len(modules) > 200
    assert [name for module in modules for name in _untyped(module)] == []


@pytest.mark.parametrize("module", [astore.errors, astore.events])
def test_every_error_and_event_is_exported(module: object) -> None:
    """Who catches an error or filters events needs no other module."""
    for name, value in vars(module).items():
        if (
            inspect.isclass(value)
            and value.__module__ == module.__name__  # type: ignore[attr-defined]
            and issubclass(value, astore.AstoreError | astore.Event)
        ):
            assert getattr(astore, name) is value


def test_names_that_users_rely_on() -> None:
    """The methods of Manager, Pool and Volume that programs are written against."""
    wanted = {
        astore.Manager: "aclose capabilities create damaged define discover events pool pool_by_uuid pools refresh_all "
        "registry reload start_all statistics volume_by_key volume_by_path",
        astore.Pool: "active autostart build definition delete error info name persistent refresh set_autostart "
        "snapshot start state stop to_xml type undefine uuid volume volumes wait_state",
        astore.Volume: "info key name path pool refresh to_xml",
        astore.BackendRegistry: "backends get load_all register types unregister",
        astore.PoolDef: "from_xml to_xml",
        astore.VolumeDef: "from_xml to_xml",
    }
    for owner, names in wanted.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []


def test_everything_public_is_documented() -> None:
    """Modules, classes, methods and functions of the core have a docstring each."""
    lacking = []
    for found in pkgutil.walk_packages(astore.__path__, "astore."):
        if found.name.startswith(("astore.cli", "astore.testing")):
            continue
        module = importlib.import_module(found.name)
        if not module.__doc__ and not (module.__file__ or "").endswith("__main__.py"):
            lacking.append(found.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            if not inspect.isclass(value) and not inspect.isfunction(value):
                continue
            if not value.__doc__:
                lacking.append(f"{found.name}.{name}")
            if inspect.isclass(value):
                lacking += [
                    f"{found.name}.{name}.{method}"
                    for method, function in vars(value).items()
                    if inspect.isfunction(function)
                    and not method.startswith("_")
                    and not inspect.getdoc(getattr(value, method))
                    and not getattr(value, "_is_protocol", False)
                ]
    assert lacking == []


def test_importing_is_light() -> None:
    """``import astore`` brings neither plugins nor the command's libraries, and configures nothing."""
    code = (
        "import json, logging, sys, astore\n"
        "import structlog\n"
        "assert not logging.root.handlers and not logging.getLogger('astore').handlers\n"
        "assert not structlog.is_configured()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"astore_gluster", "astore_netfs", "gluster", "click", "libvirt", "pytest"}


def test_listing_backends_imports_no_plugin(tmp_path: Path) -> None:
    """Entering a Manager and listing backends imports none of them but those that are used."""
    code = (
        "import asyncio, sys, astore\n"
        "async def main():\n"
        "    async with astore.Manager(sys.argv[1]) as manager:\n"
        "        print([info.type for info in manager.registry.backends() if info.status == 'ready'])\n"
        "        assert not {'astore_gluster', 'astore_netfs', 'astore.backends.directory'} & set(sys.modules)\n"
        "asyncio.run(main())"
    )
    done = run_python(code, str(tmp_path / "state"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_errors_are_one_tree() -> None:
    """Each error is an AstoreError and, where one fits, a builtin as well; the tree of the docstring is the real one."""
    drawn = astore.errors.__doc__ or ""
    for name, value in vars(astore.errors).items():
        if inspect.isclass(value) and value.__module__ == "astore.errors" and value is not astore.LibvirtCode:
            assert issubclass(value, astore.AstoreError)
            assert name in drawn
    for error, builtin in (
        (astore.DefinitionError, ValueError),
        (astore.NotFoundError, LookupError),
        (astore.UnknownBackendError, LookupError),
        (astore.StorageError, OSError),
        (astore.LaneTimeoutError, TimeoutError),
        (astore.LaneStuckError, TimeoutError),
    ):
        assert issubclass(error, builtin)
    assert not issubclass(astore.AstoreError, OSError)


def test_type_checkers_refuse_what_is_not_there(tmp_path: Path) -> None:
    """The face is lazy, and a misspelled name is an error of the type checker all the same."""
    (tmp_path / "use.py").write_text("from astore import Managr\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "use.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(astore.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'has no attribute "Managr"' in done.stdout, done.stdout + done.stderr
