"""The clients that are tried, in the versions that were tried, and what each makes of an ending.

`docs/dialects.md` shows them to users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SCENARIOS = ("success", "failure", "cancel", "timeout", "resume")
"""How a job ends, or that its client goes and comes back; the last part of a job's name."""


@dataclass(frozen=True, eq=False)
class Client:
    """A client, unmodified.

    Attributes:
        name: of its driver, in `drivers/`.
        dialect: that it speaks; of its app, in `apps/`.
        value: what it makes of the response of a job that has succeeded.
        errors: of each scenario that fails, the client's own error, and what that says (a regular
            expression).
        requirements: what is installed for it from PyPI, as pip has it; none: it is in JavaScript,
            and `package.json` has its version.
        module: that it brings to the project's own environment; None if it is not there.
    """

    name: str
    dialect: str
    value: object
    errors: Mapping[str, tuple[str, str]]
    requirements: tuple[str, ...] = ()
    module: str | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Trial:
    """One client in one scenario."""

    client: Client
    scenario: str

    @property
    def name(self) -> str:
        return f"{self.client}-{self.scenario}"

    def __str__(self) -> str:
        return self.name


AZURE = ("azure-core==1.41.0", "azure-ai-documentintelligence==1.0.2", "requests==2.34.2")
OPENAI_ERROR = "openai.types.responses.response_error.ResponseError"
AZURE_ERROR = "azure.core.exceptions.HttpResponseError"
BROKEN = r"The gauge of this station is broken\."
LATE = r"The handler may run for 5 seconds\."
GONE = r"The job was cancelled"
PATIENT = {"resourceType": "Patient", "id": "rain"}

CLIENTS = [
    Client(
        "azure_core",
        "plain",
        {"rain": 12.5, "method": "POST"},
        {
            "failure": (AZURE_ERROR, r"\(handler-response\) The response has status 422\."),
            "cancel": (AZURE_ERROR, rf"\(cancelled\) {GONE}\."),
            "timeout": (AZURE_ERROR, rf"\(timeout\) {LATE}"),
        },
        AZURE,
        "azure.core",
    ),
    Client(
        "azure_core_location",
        "plain",
        {"rain": 12.5, "method": "PUT"},
        {
            "failure": (AZURE_ERROR, rf"\(Broken\) {BROKEN}"),
            "cancel": (AZURE_ERROR, GONE),
            "timeout": (AZURE_ERROR, LATE),
        },
        AZURE,
    ),
    Client(
        "azure_document_intelligence",
        "plain",
        "12.5 mm",
        {
            "failure": (AZURE_ERROR, r"\(handler-response\) The response has status 422\."),
            "cancel": (AZURE_ERROR, rf"\(cancelled\) {GONE}\."),
            "timeout": (AZURE_ERROR, rf"\(timeout\) {LATE}"),
        },
        AZURE,
    ),
    Client(
        "core_lro",
        "plain",
        {"rain": 12.5, "method": "POST"},
        {
            "failure": ("Error", r"handler-response\. The response has status 422\."),
            "cancel": ("Error", "Operation was canceled"),
            "timeout": ("Error", rf"timeout\. {LATE}"),
        },
    ),
    Client(
        "medplum",
        "plain",
        ["Patient"],
        {"failure": ("Error", BROKEN), "cancel": ("Error", GONE), "timeout": ("Error", LATE)},
    ),
    Client(
        "smart_fetch",
        "plain",
        PATIENT,
        {
            "failure": ("builtins.SystemExit", rf"\[422\] {BROKEN}"),
            "cancel": (
                "builtins.SystemExit",
                r"\[410\].*\n.*\n.*The job has expired",
            ),
            "timeout": ("builtins.SystemExit", rf"\[504\].*\n.*\n.*{LATE}"),
        },
        ("smart-fetch==1.0.3", "cumulus-fhir-support==1.12.2"),
    ),
    Client(
        "owslib",
        "ogc",
        {"rain": 12.5},
        {
            "failure": ("builtins.RuntimeError", BROKEN),
            "cancel": ("builtins.RuntimeError", GONE),
            "timeout": ("builtins.RuntimeError", LATE),
        },
        ("OWSLib==0.35.0",),
        "owslib",
    ),
    Client(
        "cuiman",
        "ogc",
        {"rain": 12.5},
        {
            "failure": ("cuiman.api.exceptions.ClientError", BROKEN),
            "cancel": ("cuiman.api.exceptions.ClientError", GONE),
            "timeout": ("cuiman.api.exceptions.ClientError", LATE),
        },
        ("cuiman==0.1.1", "gavicore==0.1.1"),
    ),
    Client(
        "google",
        "google",
        {"rain": 12.5},
        {
            "failure": ("google.api_core.exceptions.InvalidArgument", BROKEN),
            "cancel": ("google.api_core.exceptions.Cancelled", r"The operation was cancelled\."),
            "timeout": ("google.api_core.exceptions.DeadlineExceeded", LATE),
        },
        ("google-api-core[grpc]==2.44.0", "requests==2.34.2"),
        "google.api_core.operations_v1",
    ),
    Client(
        "openai",
        "openai",
        "12.5 mm",
        {
            "failure": (OPENAI_ERROR, f"failed: {BROKEN}"),
            "cancel": ("builtins.object", "cancelled: "),
            "timeout": (OPENAI_ERROR, f"failed: {LATE}"),
        },
        ("openai==3.57.0",),
        "openai",
    ),
    Client(
        "openai_node",
        "openai",
        "12.5 mm",
        {
            "failure": ("Error", f"failed: {BROKEN}"),
            "cancel": ("Error", "cancelled: "),
            "timeout": ("Error", f"failed: {LATE}"),
        },
    ),
    Client(
        "replicate",
        "replicate",
        {"rain": 12.5},
        {
            "failure": ("replicate.exceptions.ModelError", BROKEN),
            "cancel": ("replicate.prediction.Prediction", "canceled: "),
            "timeout": ("replicate.exceptions.ModelError", LATE),
        },
        ("replicate==1.0.7",),
        "replicate",
    ),
    Client(
        "replicate_node",
        "replicate",
        {"rain": 12.5},
        {
            "failure": ("Error", f"Prediction failed: {BROKEN}"),
            "cancel": ("Error", "canceled: "),
            "timeout": ("Error", f"Prediction failed: {LATE}"),
        },
    ),
]
