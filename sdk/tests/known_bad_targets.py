"""A target that keeps the contract, and others that each break it in one way. Run by ``test_target_contract.py``."""

import asyncio
import contextlib
import json
import logging
import os

import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.errors import DeploymentError, MisconfiguredError
from certctl_core.run import Allowed
from certctl_core.target import Bundle, Receipt, Target
from certctl_sdk.files import ServedFile, deploy_files, roll_back_files, try_files
from certctl_sdk.testing.fake_host import FakeHost
from certctl_sdk.testing.target_contract import TargetContract


class Service:
    """Serves what its two files held when it was last told to load them. What it loaded survives our process."""

    def __init__(self, root):
        self.directory, self._loaded = root / "tls", root / "loaded"
        self.directory.mkdir()
        self.cert, self.key = self.directory / "site.crt", self.directory / "site.key"

    async def reload(self):
        texts = [path.read_text() if path.exists() else "" for path in (self.cert, self.key)]
        new = self._loaded.with_suffix(".new")
        new.write_text(json.dumps(texts))
        new.replace(self._loaded)

    def served(self):
        cert, key = json.loads(self._loaded.read_text()) if self._loaded.exists() else ("", "")
        return Bundle(cert, "", key) if cert or key else None


class Bare(Target):
    """All but what deploys."""

    kind, Config = "bare", ConnectorConfig
    key_mode = 0o600

    def __init__(self, service, place):
        allowed = [] if place == "forbids" else [service.directory]
        super().__init__(ConnectorConfig(), FakeHost(allowed=Allowed(allowed)))
        self.service, self.place = service, place

    def files(self, bundle):
        return [
            ServedFile(self.service.cert, bundle.cert_pem + bundle.chain_pem, 0o644),
            ServedFile(self.service.key, bundle.key_pem, self.key_mode),
        ]

    async def test(self):
        if self.place == "fails":
            raise DeploymentError("check", "the service refuses it")
        if self.place == "hangs":
            await asyncio.sleep(60)


class Good(Bare):
    """Keeps the contract."""

    async def deploy(self, request, run):
        steps = {"check": self.test, "reload": self.service.reload, "verify": request.verify}
        return await deploy_files(self.files(request.bundle), self.host.allowed, **steps)

    async def rollback(self, request, run):
        paths = [self.service.cert, self.service.key]
        await roll_back_files(paths, request.receipt, self.host.allowed, reload=self.service.reload)

    async def dry_run(self, request, run):
        try_files(self.files(request.bundle), self.host.allowed)


class GivesUp(Bare):
    """Writes in place and leaves what it wrote when a step fails."""

    def allow(self):
        if not self.host.allowed.directories:
            raise MisconfiguredError("not allowed")

    def put(self, request):
        for file in self.files(request.bundle):
            file.path.touch(file.mode)
            file.path.write_text(file.text)

    async def deploy(self, request, run):
        self.allow()
        self.put(request)
        await self.test()
        await self.service.reload()
        if request.verify:
            await request.verify()
        return Receipt({})


class OneAfterTheOther(GivesUp):
    """Goes back by itself, but a crash in between leaves the key of one certificate beside another."""

    async def deploy(self, request, run):
        self.allow()
        before = [path.read_text() if path.exists() else None for path in (self.service.cert, self.service.key)]
        try:
            self.put(request)
            await self.test()
            await self.service.reload()
            if request.verify:
                await request.verify()
        except BaseException:
            for path, text in zip((self.service.cert, self.service.key), before, strict=True):
                path.unlink() if text is None else path.write_text(text)
            await self.service.reload()
            raise
        return Receipt({})


class NeverProves(Good):
    """Does not ask for the proof."""

    async def deploy(self, request, run):
        steps = {"check": self.test, "reload": self.service.reload}
        return await deploy_files(self.files(request.bundle), self.host.allowed, **steps)


class ProvesTooEarly(Good):
    """Asks for the proof before the service was told."""

    async def deploy(self, request, run):
        async def test():
            await self.test()
            if request.verify:
                await request.verify()

        return await deploy_files(self.files(request.bundle), self.host.allowed, check=test, reload=self.service.reload)


class ProvesTooLate(Good):
    """Asks for the proof when the way back is gone."""

    async def deploy(self, request, run):
        steps = {"check": self.test, "reload": self.service.reload}
        receipt = await deploy_files(self.files(request.bundle), self.host.allowed, **steps)
        if request.verify:
            await request.verify()
        return receipt


class ShowsTheKey(Good):
    """Leaves the key readable by everybody."""

    key_mode = 0o644


class ShowsTheKeyForAMoment(Good):
    """Takes the key from the others only after it was written."""

    async def deploy(self, request, run):
        if self.host.allowed.directories:
            (draft := self.service.directory / "draft").write_text(request.bundle.key_pem)
            draft.chmod(0o600)
            draft.unlink()
        return await super().deploy(request, run)


class OpensTheKeyTooEarly(Good):
    """Writes the key into a file that others could open while it was empty."""

    async def deploy(self, request, run):
        if self.host.allowed.directories:
            (draft := self.service.directory / "draft").touch(0o644)
            draft.chmod(0o600)
            draft.write_text(request.bundle.key_pem)
            draft.unlink()
        return await super().deploy(request, run)


class WritesAnywhere(Good):
    """Allows itself every directory."""

    def __init__(self, service, place):
        super().__init__(service, place)
        self.host = FakeHost(allowed=Allowed([service.directory]))


class CannotBeStopped(Good):
    """Takes a cancellation for a success."""

    async def deploy(self, request, run):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().deploy(request, run)
        return Receipt({})


class TellsTheKey(Good):
    """Quotes the key in its error."""

    async def deploy(self, request, run):
        try:
            return await super().deploy(request, run)
        except DeploymentError as exc:
            raise DeploymentError(exc.step, f"{exc.output} with {request.bundle.key_pem}") from exc


class LogsTheKey(Good):
    """Hands the key to the log."""

    async def deploy(self, request, run):
        logging.getLogger("bad").debug("deploying", extra={"key": request.bundle.key_pem})
        return await super().deploy(request, run)


class RollsBackOnce(Good):
    """Fails the second time."""

    async def rollback(self, request, run):
        marker = self.service.directory.with_suffix(".rolled-back")
        if marker.exists():
            raise DeploymentError("roll back", "nothing to take back")
        marker.touch()
        await super().rollback(request, run)


class RollsBackSilently(Good):
    """Changes the files and does not tell the service."""

    async def rollback(self, request, run):
        async def nothing():
            pass

        paths = [self.service.cert, self.service.key]
        await roll_back_files(paths, request.receipt, self.host.allowed, reload=nothing)


class TriesInEarnest(Good):
    """Has a dry run that deploys."""

    async def dry_run(self, request, run):
        await self.deploy(request, run)


TARGETS = [Good, *Good.__subclasses__(), GivesUp, OneAfterTheOther]


class Contract(TargetContract):
    patience_seconds, hangs_after_seconds = 0.2, 0.1
    target: type[Bare]

    @pytest.fixture
    def service(self, tmp_path):
        os.umask(0o022)
        return Service(tmp_path)

    @pytest.fixture
    def make(self, service):
        return lambda place="works": self.target(service, place)

    @pytest.fixture
    def served(self, service):
        return service.served

    @pytest.fixture
    def directory(self, service):
        return service.directory


for cls in TARGETS:
    globals()[f"Test{cls.__name__}"] = type(f"Test{cls.__name__}", (Contract,), {"target": cls})
