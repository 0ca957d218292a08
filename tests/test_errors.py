"""The numbers that libvirt's users know errors by."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from pathlib import Path

import pytest

import astore
from astore import AstoreError, LibvirtCode

ERRORS = [
    value
    for value in vars(astore.errors).values()
    if inspect.isclass(value) and issubclass(value, AstoreError) and value.__module__ == "astore.errors"
]


@pytest.mark.libvirt
def test_numbers_are_libvirts() -> None:
    """Each member has the number that libvirt's own header gave to its bindings."""
    program = (
        "import json, libvirt; print(json.dumps({n: v for n, v in vars(libvirt).items() if n.startswith('VIR_ERR_')}))"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", program], capture_output=True, check=True, timeout=200)
    theirs = json.loads(done.stdout)
    assert {code.name: code.value for code in LibvirtCode} == {
        code.name: theirs[f"VIR_ERR_{code.name}"] for code in LibvirtCode
    }


def test_the_documented_table_is_the_real_one() -> None:
    """Every class that says its own number stands beside it, and every other has that of its base."""
    drawn: dict[str, str] = {}
    table = (Path(__file__).parents[1] / "docs" / "porting-from-libvirt.md").read_text()
    for code, number, names in re.findall(r"^\| `([A-Z_]+)`.*? \| (\d+)[^|]* \| (.+)$", table, re.MULTILINE):
        assert LibvirtCode[code] == int(number)
        drawn |= dict.fromkeys(re.findall(r"\w+Error\b", names), code)
    assert drawn.keys() <= {error.__name__ for error in ERRORS} | {"OSError", "TimeoutError"}
    for error in ERRORS:
        assert isinstance(error.libvirt_code, LibvirtCode)
        if error.__name__ in drawn:
            assert error.libvirt_code.name == drawn[error.__name__]
        else:
            assert "libvirt_code" not in vars(error)
            assert error.libvirt_code is error.__mro__[1].libvirt_code


def test_an_error_of_its_own_number() -> None:
    """One error's number is not its class's; nobody else's changes with it."""
    error = astore.DefinitionError("too large", libvirt_code=LibvirtCode.OVERFLOW)
    assert error.libvirt_code == 82
    assert astore.DefinitionError("malformed").libvirt_code == astore.DefinitionError.libvirt_code == 27


@pytest.mark.parametrize("call", ["start", "stop", "build", "delete", "refresh", "undefine", "autostart"])
async def test_a_pool_that_is_gone(call: str, tmp_path: Path) -> None:
    """A handle of a pool that was undefined is refused as one that there is not, whatever it is asked."""
    definition = astore.PoolDef(type="dir", name="p", target=astore.Target(path=str(tmp_path)))
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await manager.define(definition)
        await pool.undefine()
        with pytest.raises(astore.PoolNotFoundError) as caught:
            await (pool.set_autostart(True) if call == "autostart" else getattr(pool, call)())
        assert caught.value.libvirt_code == LibvirtCode.NO_STORAGE_POOL
    with pytest.raises(astore.ManagerClosedError) as closed:
        await pool.start()
    assert closed.value.libvirt_code == 6  # as a connection that was closed
