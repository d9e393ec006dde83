"""Connect a Lytics account to an ODP account and print what to paste into Lytics."""

import json
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences import naming
from audiences.management import arguments
from audiences.models import Install
from audiences.operations import installs
from odp.mechanisms import MECHANISMS


class Command(BaseCommand):
    help = "Create an install and its first token; prints the webhook URL and the authorization header for Lytics."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument(
            "--odp-api-key",
            required=True,
            help="the account's private key, <public>.<secret>; - asks for it, so that no process list shows it",
        )
        parser.add_argument("--odp-host", default="", help="base URL, when it is not the one of the key's region")
        parser.add_argument("--region", default="", choices=Install.Region.values, help="when the key doesn't say")
        parser.add_argument("--identifier-field", default="_id", help="the Lytics field with the customer's id")
        parser.add_argument("--mechanism", default="attribute", choices=list(MECHANISMS))
        parser.add_argument("--odp-prefix", default=naming.PREFIX, help="the beginning of its audiences' ODP ids")
        parser.add_argument("--batch-size", type=int, default=500, help="items in one request to ODP, at most 500")
        parser.add_argument("--requests-per-second", type=int, default=10, help="0 turns the rate limit off")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        key = options["odp_api_key"]
        key = arguments.input_line("ODP private API key: ") if key == "-" else key
        install = Install(
            name=options["name"].strip(),
            odp_host=options["odp_host"].rstrip("/"),
            odp_api_key=key,
            region=options["region"],
            identifier_field=options["identifier_field"],
            mechanism=options["mechanism"],
            odp_prefix=options["odp_prefix"],
            batch_size=options["batch_size"],
            requests_per_second=options["requests_per_second"],
        )
        try:
            token = installs.create(install)
        except ValidationError as error:
            raise CommandError("; ".join(f"{name}: {' '.join(m)}" for name, m in error.message_dict.items())) from error
        facts = {
            "install_id": install.public_id,
            "webhook_url": installs.webhook_url(install),
            "authorization": installs.authorization(token),
            "authorization_header": f"Authorization: {installs.authorization(token)}",
        }
        if options["json"]:
            self.stdout.write(json.dumps(facts))
            return
        self.stdout.write(f"Install     {facts['install_id']} ({install.name})")
        self.stdout.write(f"Webhook URL {facts['webhook_url']}")
        self.stdout.write(f"Header      {facts['authorization_header']}")
