"""The CPU of the standing checks: test customers and looks at the audiences in ODP, for fifty installs.

The checks run once a minute instead of every 15 minutes, so that a minute has many of them. The cost at
the default interval is computed from it.
"""

from benchmarks.scenarios import Bench, Needs, line, scenario
from local.processes import Program, StackError, free_port, listens
from local.stack import python
from sandbox.odp.world import DEFAULT_PRIVATE_KEY

INSTALLS, AUDIENCES = 50, 20
# Seconds of one measurement, and of the default interval of the checks.
MEASURED, INTERVAL = 60, 900
MEASURE = f"CPU of probes and looks of {INSTALLS} installs every 15 minutes"

_CREATE = """
from audiences.delivery import drafts
from audiences.models import Audience, Install, Lane
from audiences.operations import installs
for number in range({installs}):
    install = Install(name=f"Standing {{number}}", odp_host={host!r}, odp_api_key={key!r}, requests_per_second=0)
    install.odp_prefix = f"lytics_s{{number}}_"
    installs.create(install)
    drafts.note_key(install.pk, problem="")
    Install.objects.filter(pk=install.pk).update(enabled=True)
    for place in range({audiences}):
        name = f"a{{place}}"
        made = Audience.objects.create(
            install=install, segment_id=name, slug=name, latest_slug=name, odp_id=install.odp_prefix + name,
            last_sequence=1
        )
        Lane.objects.create(audience=made)
"""
_ENTER = """
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
SELECT audience.id, 1, 'kim', 1, 1, now(), false FROM audiences_audience AS audience
JOIN audiences_install AS install ON install.id = audience.install_id WHERE install.name LIKE 'Standing %'
"""
_LEFT = "SELECT count(*) FROM audiences_lane JOIN audiences_audience ON id = audience_id WHERE delivered_sequence = 0"
_PROBES = "SELECT count(*), count(DISTINCT install_id) FROM audiences_trial WHERE closed_at IS NOT NULL"
_PROVEN = """
from audiences.insight import probes
from audiences.models import Install
proofs = probes.proofs(Install.objects.filter(name__startswith="Standing"))
print(sum(each.word == "proven" for each in proofs.values()))
"""
_LOOKS = "SELECT count(*) FROM audiences_twin WHERE looked_at > now() - make_interval(secs => %s)"


@scenario(
    f"test customers and looks of {INSTALLS} installs of {AUDIENCES} audiences",
    Needs.NOTHING,
    line(MEASURE, "% of a core", better="less", bar=1),
    seconds=2 * MEASURED + 60,
    once=True,
)
def standing(bench: Bench) -> None:
    house, port = bench.house, free_port()
    house.clear()
    installs, audiences = bench.size(INSTALLS, 2), bench.size(AUDIENCES, 2)
    command = python("-m", "sandbox.odp", "--port", str(port), "--keep-requests", "100")
    command += [word for name in ("profiles", "lists", "graphql") for word in (f"--rate-{name}", "0")]
    sandbox = Program(name="sandbox-odp", command=command, ready=lambda _pid: listens(port))
    before = dict(house.settings)
    script = _CREATE.format(
        installs=installs, audiences=audiences, host=f"http://127.0.0.1:{port}", key=DEFAULT_PRIVATE_KEY
    )
    try:
        with house.running(sandbox):
            house.manage("shell", "--verbosity", "0", "-c", script)
            house.sql(_ENTER)
            without = _cpu(bench, minutes=0)
            with_checks = _cpu(bench, minutes=1)
    finally:
        house.settings = before
        house.sql("UPDATE audiences_install SET enabled = false WHERE name LIKE 'Standing %%'")
    probes, tried = house.sql(_PROBES)[0]
    proven = int(house.manage("shell", "--verbosity", "0", "-c", _PROVEN).split()[-1])
    if not probes or proven < tried:
        raise StackError(f"{proven} of {tried} installs are proven after {probes} test customers")
    looks = house.sql(_LOOKS, MEASURED)[0][0]
    seconds = bench.size(MEASURED, 20)
    bench.note(f"{probes:,} test customers and {looks:,} looks at audiences in {seconds} s.")
    # One round of every install is what a default interval costs.
    bench.record(MEASURE, max(0.0, with_checks - without) / (probes / installs) / INTERVAL * 100)


def _cpu(bench: Bench, *, minutes: int) -> float:
    """CPU seconds of all processes of the bridge and its servers, without the sandbox."""
    house = bench.house
    house.settings |= {"PROBE_MINUTES": str(minutes), "LOOK_MINUTES": str(minutes)}
    with house.bridge():
        if not house.wait(lambda: house.sql(_LEFT) == [(0,)], seconds=300):
            raise StackError("the audiences were not made in five minutes")
        house.rest(10)
        began = _used(bench)
        house.rest(bench.size(MEASURED, 20))
        return _used(bench) - began


def _used(bench: Bench) -> float:
    return sum(seconds for name, seconds in bench.house.cpu_seconds().items() if name != "sandbox-odp")
