"""What a caller may read of an upstream's failure: never a credential, a URL, a stack or a raw body.

A failure that is the caller's to mend comes back with its status and the upstream's message, cleaned; any other failure becomes
one of our own fixed sentences. The same cleaning is applied to what the record keeps.
"""

from __future__ import annotations

import re

from app.exceptions import AttemptFailed, ContextLengthExceeded, GatewayError, UpstreamRejected

MAX_MESSAGE_CHARS = 500

_SECRETS = re.compile(
    r"""(?xi)
    \b(?:sk|pk|rk|ak|key|gsk|xai|hf|ghp|glpat|AKIA|AIza|ya29)[-_.][\w\-.]{6,}   # keys by their makers' prefixes
    | \bAIza[\w-]{10,} | \bAKIA[A-Z0-9]{8,}
    | \bbearer\s+\S+
    | (?:api[-_ ]?key|[?&](?:key|sig)|token|secret|password|authorization)["']?\s*[:=]\s*["']?
      (?:(?:bearer|basic|digest|token)\s+)?[^\s"',}]+
    | \b[A-Za-z0-9+/_-]{40,}={0,2}                                               # long opaque runs
    """
)
_URLS = re.compile(
    r"""(?xi)
    \b[a-z][a-z0-9+.-]{1,15}://\S+
    | \b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b
    | \[[0-9a-f.%]*:[0-9a-f.%]*:[0-9a-f:.%]*\](?::\d+)?
    | \b[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){1,8}:\d{2,5}\b                      # a name and its port
    | \bhost\s+\S+:\d+ | \bhost\s*=\s*[^\s,)]+                                   # as HTTP clients say it
    | \blocalhost(?::\d+)?
    """
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_TRACEBACK = re.compile(
    r"""(?xis)
    traceback\ \(most\ recent\ call\ last\).* | File\ \\?"[^"]+",\ line\ \d+.*   # Python
    | \n\s{1,16}at\ (?:\S+\(|[^\n]*:\d+).*                                           # Java, JavaScript
    | goroutine\ \d+\ \[.*                                                           # Go
    """
)
_CONTEXT = re.compile(r"(?i)context[ _-]?(?:length|window)|maximum context|too many tokens|prompt is too long")

FIXED = "The model's provider refused the request."


def caller_error(failure: AttemptFailed, *, secrets: tuple[str, ...] = ()) -> GatewayError:
    """The error a caller sees for the attempt that decided the call. `secrets` are struck out wherever they stand."""
    if not failure.is_caller_fault:
        return failure.error
    message = clean(failure.upstream_message or "", secrets=secrets) or FIXED
    status = failure.upstream_status or 400
    code = _code(failure, secrets)
    if (
        code == ContextLengthExceeded.code or status == 403
    ):  # 403 is ours to say; a rule of the provider's refused the prompt
        status = 400
    return UpstreamRejected(status=status, message=message, code=code, param=_word(failure.upstream_param, secrets))


def clean(text: str, *, secrets: tuple[str, ...] = ()) -> str:
    """Strike out secrets, addresses and stacks, flatten to one line, cap the length."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[…]")
    text = _TRACEBACK.sub("", text[: 8 * MAX_MESSAGE_CHARS])
    text = _URLS.sub("[address]", text)
    text = _SECRETS.sub("[…]", text)
    text = _UNPRINTABLE.sub(" ", text).strip()
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def _code(failure: AttemptFailed, secrets: tuple[str, ...]) -> str:
    said = f"{failure.upstream_code or ''} {failure.upstream_message or ''}"
    if _CONTEXT.search(said):
        return ContextLengthExceeded.code
    code = _word(failure.upstream_code, secrets)
    return "invalid_request" if code is None or code.isdecimal() else code


def _word(value: str | None, secrets: tuple[str, ...]) -> str | None:
    """An upstream's code or param, if it is a plain word of sane length and nothing in it had to be struck out."""
    is_word = value and re.fullmatch(r"[\w.\[\]-]{1,64}", value, re.ASCII)
    return value if value and is_word and clean(value, secrets=secrets) == value else None
