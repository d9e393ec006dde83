"""The reasons why an item of a webhook call can't become an event: a code each, and a hint for the operator."""


class UnreadableError(Exception):
    """A body, a message or a part of one can't become an event. ``reason`` is the code, ``detail`` the value found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


NOT_JSON = "not_json"
PACKED_BODY = "packed_body"
CUT_OFF_BODY = "cut_off_body"
TEXT_AFTER_JSON = "text_after_json"
NOT_A_MESSAGE = "not_a_message"
UNREADABLE_MESSAGE = "unreadable_message"
NOT_A_USER_EVENT = "not_a_user_event"
NO_SEGMENT_EVENTS = "no_segment_events"
UNKNOWN_EVENT = "unknown_event"
NO_AUDIENCE = "no_audience"
UNKNOWN_SLUG = "unknown_slug"
UNREADABLE_TIME = "unreadable_time"
NO_IDENTIFIER = "no_identifier"
UNUSABLE_IDENTIFIER = "unusable_identifier"
PLACEHOLDER = "placeholder_identifier"
UNREADABLE_IDENTIFIER = "unreadable_identifier"
IDENTIFIER_TOO_LONG = "identifier_too_long"
TOO_MANY_EVENTS = "too_many_events"
TOO_MANY_MESSAGES = "too_many_messages"

HINTS: dict[str, str] = {
    NOT_JSON: (
        "The body of this call is not JSON. Check that the Lytics job is an Audience Triggers Webhook"
        " and that no template is chosen for it."
    ),
    PACKED_BODY: (
        "The body is compressed and can't be unpacked: damaged, cut off, or in a format other than gzip and deflate."
        " Look for a proxy between Lytics and this service that compresses or shortens requests."
    ),
    CUT_OFF_BODY: (
        "The body ends in the middle. The complete messages of an array were read; this is what remained. Look for a"
        " proxy between Lytics and this service that shortens requests. Lytics was answered 200, so have the job send"
        " existing users again."
    ),
    TEXT_AFTER_JSON: (
        "Text or a bracket follows the end of the JSON. Every complete message before it was read; this is"
        " what remained. Look for a proxy between Lytics and this service that changes or joins requests. If this"
        " holds a message or a part of one, have the job send existing users again."
    ),
    NOT_A_MESSAGE: (
        "This element is not a JSON object, so it names no customer and no audience. Check that the Lytics job is an"
        " Audience Triggers Webhook and that no template is chosen for it, then discard the items."
    ),
    UNREADABLE_MESSAGE: (
        "This message doesn't have the layout of an audience trigger. Check that no template is chosen for the Lytics"
        " job, and have it send existing users again."
    ),
    NOT_A_USER_EVENT: (
        "This message comes from a stream job, not from an Audience Triggers Webhook job."
        " Point that job elsewhere, or recreate it with the right job type."
    ),
    NO_SEGMENT_EVENTS: (
        "The message names no audience. Unless segment_events came and is empty, add segment_events to Export Fields in"
        " the Lytics job and have the job send existing users again. Then discard the items."
    ),
    UNKNOWN_EVENT: (
        "The event is none of enter, exit and change. Correct the Lytics job, have it send existing users again, and"
        " discard the items."
    ),
    NO_AUDIENCE: (
        "The transition names no audience: it has neither a usable segment id nor a usable slug. Correct the Lytics"
        " job, have it send existing users again, and discard the items."
    ),
    UNKNOWN_SLUG: (
        "The transition names its audience by id only and no earlier call contained that audience's slug."
        " Release it once another event of the audience has arrived."
    ),
    UNREADABLE_TIME: (
        "The time of the transition is neither an RFC 3339 time nor a number since 1970."
        " On release it counts as missing, and the message's own time is used instead."
    ),
    NO_IDENTIFIER: (
        "The identifier field is missing. Add it to Export Fields of the Lytics job."
        " If one of the fields that did come identifies these customers, release the items and choose that field: only"
        " they are read by it. To read all later calls by another field, enter it in the install. Otherwise have the"
        " job send existing users again and discard the items."
    ),
    UNUSABLE_IDENTIFIER: (
        "The identifier field is there and holds no identifier: it is blank or invisible, null, true, false or an"
        " object. Correct the field in Lytics, or release the items and choose another field that came with it."
    ),
    PLACEHOLDER: (
        "The identifier is a placeholder, such as null, undefined or zeros. As a customer it would be in every"
        " audience, so discard the items. If it is a customer after all, remove it from PLACEHOLDER_IDENTIFIERS and"
        " release the items."
    ),
    UNREADABLE_IDENTIFIER: (
        "The identifier holds bytes that are not UTF-8, half a character such as a cut emoji, or a NUL character."
        " PostgreSQL and ODP can't store them. Correct the identifier in Lytics, then discard the items."
    ),
    IDENTIFIER_TOO_LONG: (
        "The identifier is longer than 256 bytes, the longest that Lytics documents. Correct the field in Lytics, then"
        " discard the items."
    ),
    TOO_MANY_EVENTS: (
        "A call gives at most 500,000 events, one for each identifier of a message in each of its audiences. This"
        " message would have exceeded that. Release it to have it read alone. If it stays parked, it exceeds the limit"
        " alone, and no release helps: correct the identifier field in Lytics, which documents 50 identifiers of a"
        " person at the most, have the job send existing users again, and discard the item."
    ),
    TOO_MANY_MESSAGES: (
        "The call holds more than 100,000 messages; Lytics documents 1,000 at the most. Nothing of it was read."
        " Set Batch Size in the Lytics job to 300, have the job send existing users again, and discard the items."
    ),
}

# Reading such an item again can give events: after a change of settings, with a newer version, or after a later call.
# For the other reasons a release always has the same result.
RELEASABLE = frozenset(
    {
        UNREADABLE_MESSAGE,
        UNKNOWN_SLUG,
        UNREADABLE_TIME,
        NO_IDENTIFIER,
        UNUSABLE_IDENTIFIER,
        PLACEHOLDER,
        TOO_MANY_EVENTS,
    }
)
