"""What the plain dialect writes, in the words of OpenAPI 3.1: see `dialects.plain`.

References are to components by their own names; whoever puts them into a document may have to give
them others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raincheck.dialects.plain import WORDS
from raincheck.errors import PROBLEM_TYPE_PREFIX
from raincheck.idempotency import MAX_KEY
from raincheck.job import TRANSITIONS, State
from raincheck.middleware import Setup
from raincheck.policy import Policy

Node = dict[str, Any]
"""A part of a document."""

# --- schemas -----------------------------------------------------------------------------------

_TIME = {"type": "string", "format": "date-time"}
_TIME_OR_NULL = {"type": ["string", "null"], "format": "date-time"}
_URL = {"type": "string", "format": "uri-reference"}
_COUNT = {"type": "integer", "minimum": 0}

JOB_ID: Node = {"type": "string", "pattern": "^[A-Za-z0-9_-]{30}$"}


def _closed(properties: Node, *optional: str, **more: Any) -> Node:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        **more,
    }


def _ref(kind: str, name: str) -> Node:
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Node:
    """A reference to one of the schemas."""
    return _ref("schemas", name)


_ERROR = {"code": {"type": "string"}, "message": {"type": "string"}}
_PROBLEM: Node = {
    "type": {"type": "string", "format": "uri", "pattern": f"^{PROBLEM_TYPE_PREFIX}[a-z-]+$"},
    "title": {"type": "string"},
    "status": {"type": "integer", "minimum": 400, "maximum": 599},
    "detail": {"type": "string"},
}
_RESPONSE = _closed(
    {
        "status": {"type": "integer", "minimum": 200, "maximum": 599},
        "content_type": {"type": ["string", "null"]},
        "size": _COUNT,
    }
)

_SUCCEEDED = {"response": _RESPONSE, "resourceLocation": _URL}
_FAILED = {
    "error": {
        "anyOf": [
            _closed({**_ERROR, **_PROBLEM}),
            _closed({**_ERROR, "code": {"type": "string", "const": "handler-response"}}),
        ]
    },
    **_SUCCEEDED,
}
_CANCELED = {"error": _closed({**_ERROR, "code": {"type": "string", "const": "cancelled"}})}

_CALLBACK = _closed(
    {
        "status": {"type": "string", "enum": ["pending", "delivered", "failed"]},
        "deliveries": _COUNT,
        "last_error": {"type": ["string", "null"]},
    }
)


def _job(states: list[State], members: Node, *optional: str, more: Node, **rules: Any) -> Node:
    """The document of a job in one of these states."""
    final = not TRANSITIONS[states[0]]
    links = ["self", "result", "events", "cancel"]
    streams = not final or "response" in members
    urls = dict.fromkeys([*links, "stream"] if streams else links, _URL)
    stream = {"stream"} & urls.keys() if final and "response" in optional else set()
    ending = {"finished_at": _TIME, "expires_at": _TIME} if final else {}
    properties = {
        "job_id": JOB_ID,
        "status": {"type": "string", "enum": [WORDS[state] for state in states]},
        "created_at": _TIME,
        "progress": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "message": {"type": ["string", "null"]},
        **ending,
        "runs": _COUNT,
        **members,
        **({} if final else {"next_run_at": _TIME}),
        "callback": _CALLBACK,
        "links": _closed(urls, *stream),
        **more,
    }
    optional = (*optional, "callback", "next_run_at")
    return _closed(properties, *optional, *more.keys() & {"owner"}, **rules)


def _jobs(beginning: str, more: Node) -> Node:
    """The documents of jobs, one for each way that a job can stand, and one of them all."""
    pending = [State.QUEUED, State.RUNNING, State.CANCELLING]
    outlook = {
        "queue_position": {"type": ["integer", "null"], "minimum": 1},
        "estimated_completion": _TIME_OR_NULL,
        "retry_after": {"type": "integer", "minimum": 1},
    }
    both = {"response": ["resourceLocation"], "resourceLocation": ["response"]}
    kinds = {
        "Pending": (pending, _job(pending, outlook, more=more)),
        "Succeeded": ([State.SUCCEEDED], _job([State.SUCCEEDED], _SUCCEEDED, more=more)),
        "Failed": (
            [State.FAILED],
            _job([State.FAILED], _FAILED, *_SUCCEEDED, more=more, dependentRequired=both),
        ),
        "Canceled": ([State.CANCELLED], _job([State.CANCELLED], _CANCELED, more=more)),
    }
    mapping = {
        WORDS[state]: f"#/components/schemas/{beginning}{kind}Job"
        for kind, (states, _) in kinds.items()
        for state in states
    }
    whole = {
        "oneOf": [schema(f"{beginning}{kind}Job") for kind in kinds],
        "discriminator": {"propertyName": "status", "mapping": mapping},
    }
    return {
        f"{beginning}JobStatus": whole,
        **{f"{beginning}{kind}Job": document for kind, (_, document) in kinds.items()},
    }


_COUNTS: Node = {WORDS[state]: _COUNT for state in State}
_MEAN = {"type": ["number", "null"], "minimum": 0}

SCHEMAS: Mapping[str, Node] = {
    **_jobs("", {}),
    **_jobs("Listed", {"route": {"type": "string"}, "owner": {"type": ["string", "null"]}}),
    "JobList": _closed(
        {
            "jobs": {"type": "array", "items": schema("ListedJobStatus")},
            "next": {"type": ["string", "null"], "format": "uri-reference"},
        }
    ),
    "JobTotals": _closed(
        {
            **_COUNTS,
            "oldest_queued_at": _TIME_OR_NULL,
            "workers": {
                "type": "array",
                "items": _closed({"name": {"type": "string"}, "running": _COUNT}),
            },
            "routes": {
                "type": "array",
                "items": _closed(
                    {
                        "route": {"type": "string"},
                        **_COUNTS,
                        "oldest_queued_at": _TIME_OR_NULL,
                        "mean_seconds": _MEAN,
                    }
                ),
            },
        }
    ),
    "JobEvent": _closed(
        {
            "event": {"type": "string", "const": "status"},
            "id": {"type": "string", "pattern": "^[0-9]+$"},
            "retry": _COUNT,
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": schema("JobStatus"),
            },
        },
        "retry",
    ),
    "JobProblem": _closed(_PROBLEM),
}
"""The documents: each has what the dialect writes, and nothing else."""

# --- header fields -----------------------------------------------------------------------------


def _header(description: str, kind: Node, *, required: bool = False) -> Node:
    return {"description": description, **({"required": True} if required else {}), "schema": kind}


_SECONDS = {"type": "integer", "minimum": 1}
_FINAL = [WORDS[state] for state in State if not TRANSITIONS[state]]

HEADERS: Mapping[str, Node] = {
    "JobLocation": _header("The status URL of the job.", _URL, required=True),
    "JobContentLocation": _header("The same, while the job is not finished.", _URL),
    "JobOperationLocation": _header("The job's monitor.", _URL, required=True),
    "JobLink": _header('The job\'s monitor: `rel="monitor"`.', {"type": "string"}, required=True),
    "JobPage": _header("Where the browser goes on.", _URL, required=True),
    "JobRetryAfter": _header("Seconds until the next poll makes sense.", _SECONDS, required=True),
    "JobRetryLater": _header("Seconds until another try makes sense.", _SECONDS),
    "JobPreferenceApplied": _header("What was honoured of Prefer (RFC 7240).", {"type": "string"}),
    "JobReplayed": _header(
        "The Idempotency-Key was used before, by the same request.",
        {"type": "string", "const": "true"},
    ),
    "JobVary": _header("Has Prefer, which chooses the answer.", {"type": "string"}),
    "JobNoStore": _header("No cache keeps it.", {"type": "string", "const": "no-store"}),
    "JobEnded": _header(
        "How the job has ended; on every answer about one that has.",
        {"type": "string", "enum": _FINAL},
    ),
    "JobResponseStatus": _header(
        "The status of a stored response that is served with another: a 202, as 200.",
        {"type": "string", "const": "202"},
    ),
}


def _headers(**fields: str) -> Node:
    return {name.replace("_", "-"): _ref("headers", header) for name, header in fields.items()}


# --- responses ---------------------------------------------------------------------------------

_JSON = "application/json"
_PROBLEM_JSON = "application/problem+json"
_ERROR_PAGE = {"text/plain": {"schema": {"type": "string"}}}  # Starlette's
_ANY: Node = {"*/*": {}}
_PAGE = {"text/html": {"schema": {"type": "string"}}}


def _problem(description: str, setup: Setup, **headers: str) -> Node:
    pages = _PAGE if setup.pages.waiting is not None else {}
    fields = _headers(**headers, Cache_Control="JobNoStore")
    content = {_PROBLEM_JSON: {"schema": schema("JobProblem")}, **pages}
    return {"description": description, "headers": fields, "content": content}


def _status(description: str, name: str = "JobStatus", **headers: str) -> Node:
    fields = _headers(**headers, Cache_Control="JobNoStore")
    content = {_JSON: {"schema": schema(name)}}
    return {"description": description, "headers": fields, "content": content}


def accepted(setup: Setup, policy: Policy) -> Node:
    """The 202 of a long-running operation, without its links."""
    more = {"Operation_Location": "JobOperationLocation"} if setup.absolute else {}
    if policy.idempotency != "off":
        more["Idempotency_Replayed"] = "JobReplayed"
    return _status(
        "Accepted: the job runs, or waits for its turn. Its status URL later becomes the response.",
        Location="JobLocation",
        **more,
        Content_Location="JobContentLocation",
        Link="JobLink",
        Retry_After="JobRetryAfter",
        Preference_Applied="JobPreferenceApplied",
        Vary="JobVary",
    )


def _sent_on(description: str) -> Node:
    return {"description": description, "headers": _headers(Location="JobPage")}


def refusals(setup: Setup, policy: Policy) -> dict[str, Node]:
    """What else raincheck answers to a request for a long-running operation."""
    keyed, either = policy.idempotency != "off", policy.respond == "preferred"
    later = {"Retry_After": "JobRetryLater"}
    found = {"303": _sent_on("A browser is sent on to the page of the job.")}
    if keyed:
        found["400"] = _problem("The Idempotency-Key is missing or malformed.", setup)
        found["422"] = _problem("The Idempotency-Key was used for another request.", setup)
    if setup.require_owner:
        found["401"] = _problem("The request does not say whose it is.", setup)
    if keyed and either:
        found["409"] = _problem("The first request with this key is not answered.", setup, **later)
        found["410"] = _problem("The first request with this key was cancelled.", setup)
    found["413"] = _problem("The request body is too large.", setup)
    if policy.max_queued_per_owner is not None:
        found["429"] = _problem("Too many requests of the owner wait.", setup, **later)
    failed = _problem("The handler failed in time, or the owner is not known.", setup)
    found["500"] = {**failed, "content": {**failed["content"], **_ERROR_PAGE}}
    if policy.max_wait:  # an outcome in time
        found["502"] = _problem("The job's process was lost.", setup)
    found["503"] = _problem("The queue is full, the server stops, or no store.", setup, **later)
    if policy.max_wait and policy.timeout is not None:
        found["504"] = _problem("The handler took too long.", setup)
    return dict(sorted(found.items()))


def callbacks(url: object, *, asked: bool) -> Node:
    """The callback objects of an operation; none where nobody may be told of the end of its jobs.

    Args:
        url: whom its author tells: a URL; or a function of the request, of which nothing is known
            before, or None.
        asked: whether a client may ask to be told, by `Prefer: callback; url="..."`.
    """
    found = {"jobEnded": url} if isinstance(url, str) else {}
    found |= {"jobEndedAsAsked": "{$request.header.Prefer}"} if asked else {}
    return {name: {expression: {"post": _told()}} for name, expression in found.items()}


def _told() -> Node:
    fields = ("id", "timestamp", "signature")
    return {
        "summary": "The job has ended.",
        "parameters": [
            _field(f"webhook-{name}", "Standard Webhooks.", required=True) for name in fields
        ],
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema("JobStatus")}}},
        "responses": {
            "2XX": {"description": "Taken."},
            "410": {"description": "Not wanted; it is not sent again."},
            "default": {"description": "The message is sent again later."},
        },
    }


# --- parameters --------------------------------------------------------------------------------


def _field(name: str, description: str, *, required: bool = False, **kind: Any) -> Node:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {"type": "string", **kind},
    }


def parameters(policy: Policy) -> list[Node]:
    """What a request for a long-running operation can say."""
    wait = (
        f"; `wait=N` waits N seconds for it, {policy.max_wait:g} at most" if policy.max_wait else ""
    )
    start = "`respond-async` asks for a 202" if policy.respond == "preferred" else "`respond-async`"
    found = [
        _field(
            "Prefer",
            f"RFC 7240. {start}{wait}. What is not known is ignored.",
            examples=["respond-async"],
        )
    ]
    if policy.idempotency != "off":
        key = _field(
            "Idempotency-Key",
            "The same request sent again under its key is one job.",
            required=policy.idempotency == "required",
            pattern=rf'^("[ !#-\[\]-~]{{1,{MAX_KEY}}}"|[!#-+\-.0-9:<-~]{{1,{MAX_KEY}}})$',
        )
        found.append(key)
    return found


_WAIT = _field("Prefer", "`wait=N` waits up to N seconds, 25 at most (RFC 7240).")
_NEGOTIATED = [
    _field("Range", "Bytes of a finished 200 (RFC 9110 §14.2)."),
    _field("If-Range", "The ETag that Range goes with (RFC 9110 §13.1.5)."),
]
_CONDITIONS = [
    _field("If-Match", "ETags, one of which it must have (RFC 9110 §13.1.1)."),
    _field("If-None-Match", "ETags, none of which it may have (RFC 9110 §13.1.2)."),
]
_RESUMED = _field("Last-Event-ID", "The last event that was seen.")


def _query(name: str, description: str, **kind: Any) -> Node:
    kind = {"type": "string", **kind}
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": kind,
    }


def _selection(operator: bool) -> list[Node]:
    words = ", ".join(WORDS.values())
    owner = [_query("owner", "Jobs of this owner.")] if operator else []
    most = "How many at most; what is more than 200 is 200."
    return [
        _query("status", f"Jobs with one of these, comma-separated: {words}."),
        _query("route", "Jobs of this route."),
        *owner,
        _query("created_since", "Accepted then or later.", format="date-time"),
        _query("created_before", "Accepted before.", format="date-time"),
        _query("limit", most, type="integer", minimum=1, default=50),
        _query("cursor", "Where the page before ended: see `next`."),
    ]


# --- the status routes -------------------------------------------------------------------------


def _absent(setup: Setup) -> dict[str, Node]:
    """What a status route answers of a job that is not to be seen."""
    return {
        "404": _problem("There is no such job, or it is another's.", setup),
        "410": _problem("The job has expired, or was deleted.", setup),
        "503": _problem("The job cannot be read now.", setup, Retry_After="JobRetryLater"),
        "default": _problem("Any other problem.", setup),
    }


def _result(setup: Setup) -> dict[str, Node]:
    pending = _status(
        "The job is not finished.",
        Location="JobLocation",
        Content_Location="JobContentLocation",
        Retry_After="JobRetryAfter",
    )
    if setup.pages.waiting is not None:
        pending["content"] |= _PAGE if setup.pages.waiting == "built-in" else _ANY
    fields = _headers(Job_Status="JobEnded", Job_Response_Status="JobResponseStatus")
    become = {
        "description": "The stored response of the operation, whatever it is; or a problem "
        "(RFC 9457): the job failed without one, was cancelled (410), or is gone (404, 410).",
        "headers": fields,
        "content": _ANY,
    }
    empty = {"description": "The same, where it has no content.", "headers": fields}
    moved = {"description": "The same: it leads elsewhere, or is not modified.", "headers": fields}
    return {"202": pending, "204": empty, "3XX": moved, "default": become}


def _monitor(setup: Setup) -> dict[str, Node]:
    fields = {"Retry_After": "JobRetryLater", "Job_Status": "JobEnded"}
    return {"200": _status("How the job stands.", **fields), **_absent(setup)}


def _events(setup: Setup, each: str) -> dict[str, Node]:
    fields = _headers(Job_Status="JobEnded", Cache_Control="JobNoStore")
    told = {
        "description": "Server-Sent Events: `event: status`, and in `data` a JobStatus.",
        "headers": fields,
        "content": {"text/event-stream": {each: schema("JobEvent")}},
    }
    seen = {"description": "The end was seen; there is no more.", "headers": fields}
    return {"200": told, "204": seen, **_absent(setup)}


def _cancel(setup: Setup) -> dict[str, Node]:
    return {
        "200": _status("The job was cancelled.", Job_Status="JobEnded"),
        "202": _status("The job is going to stop.", Retry_After="JobRetryLater"),
        "303": _sent_on("A browser is sent back to where the button was."),
        "403": _problem("A page of another site sent it.", setup),
        "409": _problem("The job has finished.", setup, Job_Status="JobEnded"),
        **_absent(setup),
    }


def _delete(setup: Setup) -> dict[str, Node]:
    return {
        "202": _status("The job stops, and is forgotten.", Retry_After="JobRetryLater"),
        "204": {"description": "The job is forgotten."},
        "303": _sent_on("A browser is sent back to where the button was."),
        "403": _problem("A page of another site sent it.", setup),
        **_absent(setup),
    }


def _redeliver(setup: Setup) -> dict[str, Node]:
    return {
        "200": _status("The callback is going to be sent again.", Job_Status="JobEnded"),
        "303": _sent_on("A browser is sent back to where the button was."),
        "403": _problem("A page of another site sent it.", setup),
        "409": _problem("The job has not ended, or tells nobody.", setup),
        **_absent(setup),
    }


def _listing(setup: Setup, name: str, what: str) -> dict[str, Node]:
    found = _status(what, name)
    if setup.pages.waiting is not None or name == "JobList":
        found["content"] |= _PAGE
    denied = _problem("Whoever asks may not list jobs.", setup)
    malformed = {"400": _problem("The query cannot be read.", setup)} if name == "JobList" else {}
    absent = _absent(setup)
    return {"200": found, **malformed, "404": denied, **{k: absent[k] for k in ("503", "default")}}


def status_routes(setup: Setup, *, each: str = "schema") -> dict[str, dict[str, tuple[str, Node]]]:
    """The status routes: by path below the mount path and method, a name and the operation.

    `{job_id}` stands for the id.

    Args:
        setup: that of the middleware.
        each: the field that describes one event of a stream: `itemSchema` from OpenAPI 3.2 on;
            before, `schema` is read so.
    """
    result = ("result", "The response of a job, once it is there", _result(setup))
    polled = [_WAIT, *_NEGOTIATED, *_CONDITIONS]
    delete = ("delete", "Forget a job", _delete(setup))
    found = {
        "/{job_id}": {**_read(*result, polled), "delete": _named(*delete)},
        "/{job_id}/status": _read("monitor", "How a job stands", _monitor(setup), [_WAIT]),
        "/{job_id}/events": _read(
            "events", "What becomes of a job", _events(setup, each), [_RESUMED]
        ),
        "/{job_id}/stream": _read(
            "stream", "The response of a job as it comes", _result(setup), polled
        ),
        "/{job_id}/cancel": {"post": _named("cancel", "Cancel a job", _cancel(setup))},
        "/{job_id}/delete": {
            "post": _named("delete_by_post", "Forget a job, by a form", _delete(setup))
        },
    }
    operator = setup.pages.operator is not None
    if operator or setup.pages.own_list:
        jobs = _listing(setup, "JobList", "Jobs, newest first.")
        # Below a mount all paths begin with a slash.
        found["/" if setup.mounted else ""] = _read(
            "list", "The jobs that there are", jobs, _selection(operator)
        )
    if operator:
        totals = _listing(setup, "JobTotals", "How many jobs there are.")
        found["/totals"] = _read("totals", "How many jobs there are", totals, [])
        again = _named("redeliver", "Send a job's callback again", _redeliver(setup))
        found["/{job_id}/redeliver"] = {"post": again}
    return found


def _named(
    name: str, summary: str, responses: dict[str, Node], parameters: list[Node] | None = None
) -> tuple[str, Node]:
    more = {"parameters": parameters} if parameters else {}
    return name, {"summary": summary, **more, "responses": responses}


def _read(
    name: str, summary: str, responses: dict[str, Node], parameters: list[Node]
) -> dict[str, tuple[str, Node]]:
    """GET, and HEAD, which has no content."""
    heads = {
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in responses.items()
    }
    head = _named(f"{name}_head", f"{summary}: its header fields", heads, parameters)
    return {"get": _named(name, summary, responses, parameters), "head": head}
