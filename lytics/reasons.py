"""Why an item of a webhook call could not become an event: one code each, and what a person should do about it."""

NOT_JSON = "not_json"
NOT_A_MESSAGE = "not_a_message"
UNREADABLE_MESSAGE = "unreadable_message"
NOT_A_USER_EVENT = "not_a_user_event"
NO_SEGMENT_EVENTS = "no_segment_events"
UNKNOWN_EVENT = "unknown_event"
NO_AUDIENCE = "no_audience"
UNKNOWN_SLUG = "unknown_slug"
UNREADABLE_TIME = "unreadable_time"
NO_IDENTIFIER = "no_identifier"
UNREADABLE_IDENTIFIER = "unreadable_identifier"
IDENTIFIER_TOO_LONG = "identifier_too_long"
TOO_MANY_EVENTS = "too_many_events"
TOO_MANY_MESSAGES = "too_many_messages"

HINTS: dict[str, str] = {
    NOT_JSON: (
        "The body of this call is not JSON. Check that the Lytics job is an Audience Triggers Webhook"
        " and that no template is chosen for it."
    ),
    NOT_A_MESSAGE: "This element is not a JSON object, so it names no customer and no audience.",
    UNREADABLE_MESSAGE: "This message is not laid out as an audience trigger. No template may be chosen for the job.",
    NOT_A_USER_EVENT: (
        "This message comes from a stream job, not from an Audience Triggers Webhook job."
        " Point that job elsewhere, or recreate it with the right job type."
    ),
    NO_SEGMENT_EVENTS: (
        "The message says nothing about an audience. In the Lytics job, add segment_events to Export Fields."
    ),
    UNKNOWN_EVENT: "The transition is none of enter, exit and change.",
    NO_AUDIENCE: "The transition names no audience: it has neither a segment id nor a slug.",
    UNKNOWN_SLUG: (
        "The transition names its audience by id only and no earlier call told that audience's slug."
        " Release it once another event of the audience has arrived."
    ),
    UNREADABLE_TIME: (
        "The time of the transition is not an RFC 3339 time."
        " On release it counts as missing, and the message's own time is used instead."
    ),
    NO_IDENTIFIER: (
        "The message holds no usable customer identifier. Add the identifier field to Export Fields of the Lytics job."
        " What came without it can be read if one of the fields that did come identifies customers: name that one in"
        " the install and release. If none does, have the job send existing users again and discard this."
    ),
    UNREADABLE_IDENTIFIER: "The identifier holds characters that no database and no ODP field can keep.",
    IDENTIFIER_TOO_LONG: "The identifier is longer than 256 bytes, the longest that Lytics documents.",
    TOO_MANY_EVENTS: (
        "One call may become 500,000 events at the most, and the identifiers of this message times its audiences"
        " would have gone beyond. Release it to have it read by itself."
    ),
    TOO_MANY_MESSAGES: (
        "The call holds more than 100,000 messages; Lytics documents 1,000 at the most. Nothing of it was read."
        " Set Batch Size in the Lytics job to 300."
    ),
}
