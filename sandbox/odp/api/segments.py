"""Endpoints of real-time segments: list, read, install, replace, validate and delete."""

from sandbox.odp.account.accounts import Account, Caller, Segment
from sandbox.odp.account.changes import as_change
from sandbox.odp.account.conditions import Invalid
from sandbox.odp.account.segments import parse_segment
from sandbox.odp.wire.answers import Answer, Refused, in_json, titled
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World

INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS = 3, 5, 6  # gRPC's numbers


def list_segments(world: World, caller: Caller, request: Request) -> Answer:
    return in_json(200, {"segment_ids": [*caller.account.segments]})


def get_segment(world: World, caller: Caller, request: Request) -> Answer:
    segment = caller.account.segments.get(request.named["segment_id"])
    return in_json(200, segment.as_json()) if segment else _no_segment(world, caller, request)


def put_segment(world: World, caller: Caller, request: Request) -> Answer:
    return _install(world, caller, request, must_be_new=False)


def post_segment(world: World, caller: Caller, request: Request) -> Answer:
    return _install(world, caller, request, must_be_new=caller.account.assumptions.segment_post_existing == "refuse")


def _install(world: World, caller: Caller, request: Request, *, must_be_new: bool) -> Answer:
    account = caller.account
    segment = _parse(world, caller, request)
    old = account.segments.get(segment.id)
    if old is not None and must_be_new:
        message = f"segment {segment.id} already exists"
        return _segment_error(world, account, 400, ALREADY_EXISTS, message)
    if old is None and 0 < account.assumptions.segment_limit <= len(account.segments):
        return _segment_error(world, account, 400, INVALID_ARGUMENT, "the account has no room for another segment")
    if old is not None:
        segment.revision = old.revision + 1
        if account.assumptions.metadata_on_replace == "merge":
            segment.metadata = old.metadata | segment.metadata
    world.change("segment", account, as_change(segment))
    return in_json(201 if old is None else 200, {"revision": segment.revision})


def validate_segment(world: World, caller: Caller, request: Request) -> Answer:
    _parse(world, caller, request)
    return in_json(200, {})


def delete_segment(world: World, caller: Caller, request: Request) -> Answer:
    if request.named["segment_id"] not in caller.account.segments:
        return _no_segment(world, caller, request)
    world.change("segment_deleted", caller.account, request.named["segment_id"])
    return in_json(200, {})


def _parse(world: World, caller: Caller, request: Request) -> Segment:
    body = request.require_json(world.clock.stamp())
    try:
        return parse_segment(caller.account, request.named["segment_id"], body)
    except Invalid as invalid:
        raise Refused(_segment_error(world, caller.account, 400, INVALID_ARGUMENT, str(invalid))) from invalid


def _no_segment(world: World, caller: Caller, request: Request) -> Answer:
    message = f"segment {request.named['segment_id']} not found"
    return _segment_error(world, caller.account, 404, NOT_FOUND, message)


def _segment_error(world: World, account: Account, status: int, code: int, message: str) -> Answer:
    if account.assumptions.segment_errors == "titled":
        return titled(status, world.clock.stamp(), {"message": message})
    return in_json(status, {"code": code, "message": message, "details": []})
