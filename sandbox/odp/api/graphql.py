"""`/v3/graphql`: a GraphQL schema built from the account's customer fields and executed by graphql-core."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLArgument,
    GraphQLBoolean,
    GraphQLError,
    GraphQLField,
    GraphQLFloat,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfo,
    GraphQLSchema,
    GraphQLString,
    execute_sync,
    parse,
    validate,
)

from sandbox.odp.account.accounts import Account, Caller, Segment
from sandbox.odp.account.customers import Customer
from sandbox.odp.account.membership import population, qualifies
from sandbox.odp.wire.answers import Answer, in_json
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World

LARGEST_PAGE = 1000
DOCUMENTS_KEPT = 500
SCHEMAS_KEPT = 50
Info = GraphQLResolveInfo[Caller]
OWN_FIELDS = ("audiences", "list_member")


@dataclass(frozen=True, slots=True)
class Found:
    """A customer and the identifier that found it: passthrough memberships belong to the identifier."""

    account: Account
    customer: Customer | None
    identifier: tuple[str, str]


@dataclass(slots=True)
class Built:
    """An executable schema with a cache of validated queries. Accounts with the same customer fields share it."""

    schema: GraphQLSchema
    documents: dict[str, DocumentNode | list[GraphQLError]] = field(default_factory=dict)

    def document(self, query: str) -> DocumentNode | list[GraphQLError]:
        known = self.documents.get(query)
        if known is None:
            if len(self.documents) >= DOCUMENTS_KEPT:
                self.documents.clear()
            known = self.documents[query] = self._check(query)
        return known

    def _check(self, query: str) -> DocumentNode | list[GraphQLError]:
        try:
            document = parse(query)
        except GraphQLError as error:
            return [_classified(error, "InvalidSyntax")]
        errors = validate(self.schema, document)
        return [_classified(error, "ValidationError") for error in errors] if errors else document


def post_graphql(world: World, caller: Caller, request: Request) -> Answer:
    return in_json(200, answer_query(caller, request.require_json(world.clock.stamp())))


def answer_query(caller: Caller, body: Any) -> dict[str, Any]:
    """The body of the response. Its status is always 200, because GraphQL reports errors beside the data."""
    query = body.get("query") if isinstance(body, dict) else None
    variables = body.get("variables") if isinstance(body, dict) else None
    if not isinstance(query, str) or not isinstance(variables or {}, dict):
        wrong = GraphQLError("query must be a string, and variables an object")
        return {"errors": [_classified(wrong, "InvalidSyntax").formatted]}
    built = _schema_of(caller.account)
    document = built.document(query)
    if isinstance(document, list):
        return {"errors": [error.formatted for error in document]}
    result = execute_sync(
        built.schema,
        document,
        context_value=caller,
        variable_values=variables or {},
        operation_name=body.get("operationName"),
    )
    return _formatted(result)


def _formatted(result: ExecutionResult) -> dict[str, Any]:
    shown: dict[str, Any] = {"data": result.data}
    if result.errors:
        shown["errors"] = [_classified(error, "DataFetchingException").formatted for error in result.errors]
    return shown


def _classified(error: GraphQLError, classification: str) -> GraphQLError:
    error.extensions = {"classification": classification, **(error.extensions or {})}
    return error


def _schema_of(account: Account) -> Built:
    version = (id(account.schema), account.schema.version, account.assumptions.graphql_scalars)
    if account.built_graphql is None or account.built_graphql[0] != version:
        account.built_graphql = (
            version,
            _built(
                tuple((each.name, each.type, each.public_read) for each in account.schema.fields.values()),
                tuple(account.schema.identifiers),
                account.assumptions.graphql_scalars == "typed",
            ),
        )
    found = account.built_graphql[1]
    assert isinstance(found, Built)
    return found


@lru_cache(SCHEMAS_KEPT)
def _built(fields: tuple[tuple[str, str, bool], ...], identifiers: tuple[str, ...], typed: bool) -> Built:
    audience = GraphQLObjectType("Audience", _audience_fields)
    connection = _connection(audience)
    attributes = {
        name: GraphQLField(_scalar(kind) if typed else GraphQLString, resolve=_attribute(name, public_read))
        for name, kind, public_read in fields
        if name not in OWN_FIELDS
    }
    customer = GraphQLObjectType("Customer", {**attributes, **_membership_fields(connection)})
    by = {kind: GraphQLArgument(GraphQLString) for kind in (*identifiers, "zaius_id")}
    query = {
        "customer": GraphQLField(customer, args=by, resolve=_find_customer),
        "audiences": GraphQLField(connection, args=_paging(), resolve=_all_audiences),
        "audience": GraphQLField(
            audience, args={"name": GraphQLArgument(GraphQLNonNull(GraphQLString))}, resolve=_one_audience
        ),
    }
    return Built(GraphQLSchema(GraphQLObjectType("Query", query)))


def _paging() -> dict[str, GraphQLArgument]:
    return {"first": GraphQLArgument(GraphQLInt), "after": GraphQLArgument(GraphQLString)}


def _audience_fields() -> dict[str, GraphQLField]:
    estimate = GraphQLObjectType(
        "PopulationEstimate",
        {
            "estimated_lower_bound": GraphQLField(GraphQLInt),
            "estimated_upper_bound": GraphQLField(GraphQLInt),
        },
    )
    return {
        "name": GraphQLField(GraphQLString),
        "description": GraphQLField(GraphQLString),
        "state": GraphQLField(GraphQLString),
        "is_ready": GraphQLField(GraphQLBoolean),
        "population_estimate": GraphQLField(
            estimate, args={"percent_error": GraphQLArgument(GraphQLFloat)}, resolve=_estimate
        ),
    }


def _connection(audience: GraphQLObjectType) -> GraphQLObjectType:
    edge = GraphQLObjectType("AudienceEdge", {"node": GraphQLField(audience), "cursor": GraphQLField(GraphQLString)})
    info = GraphQLObjectType(
        "PageInfo", {"hasNextPage": GraphQLField(GraphQLBoolean), "endCursor": GraphQLField(GraphQLString)}
    )
    edges = {"edges": GraphQLField(GraphQLList(edge)), "pageInfo": GraphQLField(info)}
    return GraphQLObjectType("AudienceConnection", edges)


def _membership_fields(connection: GraphQLObjectType) -> dict[str, GraphQLField]:
    subset = {"subset": GraphQLArgument(GraphQLList(GraphQLString)), **_paging()}
    member = GraphQLObjectType("ListMember", {"subscribed": GraphQLField(GraphQLBoolean)})
    by_list = {"list_id": GraphQLArgument(GraphQLNonNull(GraphQLString))}
    return {
        "audiences": GraphQLField(connection, args=subset, resolve=_audiences_of),
        "list_member": GraphQLField(member, args=by_list, resolve=_list_member),
    }


def _scalar(kind: str) -> GraphQLOutputType:
    by_type: dict[str, GraphQLOutputType] = {
        "boolean": GraphQLBoolean,
        "number": GraphQLFloat,
        "timestamp": GraphQLFloat,
        "vector": GraphQLList(GraphQLFloat),
    }
    return by_type.get(kind, GraphQLString)


def _attribute(name: str, public_read: bool) -> Callable[[Found, Info], Any]:
    def resolve(found: Found, info: Info) -> Any:
        caller = info.context
        if not caller.is_private and not public_read:
            if caller.account.assumptions.private_fields == "null":
                return None
            raise GraphQLError(f"field {name} is not readable with a public key")
        if found.customer is None:
            return None
        value = found.customer.zaius_id if name == "zaius_id" else found.customer.record.get(name)
        as_text = caller.account.assumptions.graphql_scalars == "strings" and value is not None
        return str(value).lower() if as_text and isinstance(value, bool) else str(value) if as_text else value

    return resolve


def _find_customer(root: Any, info: Info, **by: str | None) -> Found:
    account: Account = info.context.account
    given = [(kind, value) for kind, value in by.items() if value is not None]
    if len(given) != 1:
        raise GraphQLError("Exception while fetching data (/customer) : exactly one identifier is required")
    kind, value = given[0]
    customer = account.customers.find(kind, value)
    if customer is None and given[0] not in account.passthrough_members:
        raise GraphQLError(
            f"Exception while fetching data (/customer) : could not resolve _{kind} = {value}",
            extensions={"code": "INVALID_IDENTIFIER_EXCEPTION", "classification": "DataFetchingException"},
        )
    return Found(account, customer, given[0])


def _audiences_of(
    found: Found,
    info: Info,
    subset: list[str | None] | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    asked = found.account.segments if subset is None else dict.fromkeys(each for each in subset if each)
    known = [found.account.segments[name] for name in asked if name in found.account.segments]
    if len(known) < len(asked) and found.account.assumptions.unknown_segment == "error":
        missing = next(name for name in asked if name not in found.account.segments)
        raise GraphQLError(f"Exception while fetching data (/customer/audiences) : unknown audience {missing}")
    inside = [each for each in known if qualifies(found.account, each, found.customer, found.identifier)]
    return _page(found.account, inside, first, after, state="qualified")


def _list_member(found: Found, info: Info, list_id: str) -> dict[str, Any] | None:
    known = (found.customer.lists if found.customer else None) or {}
    if list_id not in known:
        return None
    subscribed, _, consented = known[list_id]
    return {"subscribed": subscribed and consented}


def _all_audiences(root: Any, info: Info, first: int | None = None, after: str | None = None) -> dict[str, Any]:
    account: Account = info.context.account
    return _page(account, list(account.segments.values()), first, after, state=None)


def _one_audience(root: Any, info: Info, name: str) -> dict[str, Any] | None:
    account: Account = info.context.account
    segment = account.segments.get(name)
    return _node(account, segment, state=None) if segment else None


def _page(
    account: Account, segments: list[Segment], first: int | None, after: str | None, state: str | None
) -> dict[str, Any]:
    size = LARGEST_PAGE if first is None else first
    if not 0 <= size <= LARGEST_PAGE:
        raise GraphQLError(f"first must be between 0 and {LARGEST_PAGE}")
    start = int(after) if after and after.isdecimal() else 0
    page = segments[start : start + size]
    edges = [{"node": _node(account, each, state), "cursor": str(start + at + 1)} for at, each in enumerate(page)]
    end = str(start + len(page))
    return {"edges": edges, "pageInfo": {"hasNextPage": start + size < len(segments), "endCursor": end}}


def _node(account: Account, segment: Segment, state: str | None) -> dict[str, Any]:
    return {
        "name": segment.id,
        "description": segment.description,
        "state": state,
        "is_ready": True,
        "of": (account, segment),
    }


def _estimate(node: dict[str, Any], info: Info, percent_error: float | None = None) -> dict[str, int]:
    """Bounds around the exact count, as wide as the caller allows."""
    count = population(*node["of"])
    slack = int(count * (percent_error or 0) / 100)
    return {"estimated_lower_bound": count - slack, "estimated_upper_bound": count + slack}
