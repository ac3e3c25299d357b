"""The exceptions that axiskit raises, one class a cause.

A message reads ``<where>: <found>, <needed and which key says so>; <what to do>``.
"""

import difflib
from collections.abc import Iterable


class AxiskitError(Exception):
    """Base of all errors that a user can mend; a script prints its message without a traceback."""


class ConfigError(AxiskitError):
    """A key of the config is unknown, missing or has a value that cannot be used."""


class RoleError(AxiskitError):
    """A role file is missing or does not hold what a role needs."""


class QuestionError(AxiskitError):
    """The question file is missing, malformed or too short."""


class ModelError(AxiskitError):
    """A model cannot be fetched, loaded or read layer by layer."""


class TemplateError(AxiskitError):
    """A chat template is missing, or rewrites what it is given."""


class NonFiniteError(AxiskitError):
    """NaN or Inf where numbers must be finite; the message names the rollout."""


class ArtifactError(AxiskitError):
    """A file of results/ cannot be read, or does not fit the other files."""


class WriteError(AxiskitError):
    """A file cannot be written (disk full, quota, permission)."""


class DiskError(AxiskitError):
    """The disk has less room than what is still to be written needs."""


class VectorError(AxiskitError):
    """Too few roles or responses are left to compute with."""


class JudgeError(AxiskitError):
    """The judge left more of a role unscored than the config allows."""


class InterventionError(AxiskitError, ValueError):
    """A steering vector, threshold or layer with which an intervention cannot act as asked."""


class TranscriptError(AxiskitError):
    """A conversation, scripted or recorded, is missing, malformed or ends in the wrong role."""


class PageError(AxiskitError):
    """The page cannot be served: no Gradio, or no such address and port to be had."""


class DeviceError(AxiskitError):
    """Fewer GPUs are visible than a job needs, or they cannot be leased."""


class OutOfMemoryError(AxiskitError):
    """A single sequence does not fit in memory; no smaller batch is possible."""


class AccountError(AxiskitError):
    """The judge's server refuses this account: bad key, no credit, no permission."""


class BudgetError(AxiskitError):
    """One more question to the judge could cost more than the config allows."""


class ServerError(AxiskitError):
    """The judge's server does not answer, or refuses what it is sent."""


class InterruptError(AxiskitError):
    """The job was told to end; what it had finished is kept."""


class AuditError(AxiskitError):
    """There is nothing to audit, or labels do not fit the sample."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about an unknown name: the nearest known one, or else what the caller says.

    >>> did_you_mean("pirat", ["pirate", "poet"], "add the file")
    "did you mean 'pirate'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise
