"""Performs a redelivery and reads its history with the client generated from /openapi.json.

Arguments: the API's URL, a token, and a receiver's URL.
"""

import sys
import time
import uuid

from redial_client.client import AuthenticatedClient
from redial_client.api.callback_deliveries import get_delivery, list_deliveries, withdraw_delivery
from redial_client.api.callback_secrets import create_secret, list_secrets
from redial_client.api.runs import create_redelivery, get_run, list_deliveries_of_run, record_run
from redial_client.models import CreateRedeliveryBody, CreateSecretBody, DeliveryStatus, ErrorBody
from redial_client.models import ListDeliveriesFieldsItem, PartialDelivery, Timing, WithdrawDeliveryBody
from redial_client.models import RecordRunBody, RecordRunBodyStatusCode


def ended(client, run, count):
    """Waits for the end of `count` deliveries; returns them, newest first."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        deliveries = list_deliveries_of_run.sync(run, client=client)
        if len(deliveries) == count and all(delivery.completed_at for delivery in deliveries):
            return deliveries
        time.sleep(0.05)
    raise SystemExit(f"the deliveries did not end: {deliveries}")


def main(url, token, receiver):
    client = AuthenticatedClient(base_url=url, token=token)
    run = uuid.uuid4()

    missing = get_run.sync(run, client=client)
    assert isinstance(missing, ErrorBody) and missing.code == "RUN_NOT_FOUND", missing

    secret = create_secret.sync(client=client, body=CreateSecretBody(label="generated client"))
    assert secret.plain_secret.startswith("whsec_"), "creating a secret shows it"
    assert secret.id in [item.id for item in list_secrets.sync(client=client).items]

    body = RecordRunBody(status_code=RecordRunBodyStatusCode.SUCCEEDED, callback_url=receiver)
    recorded = record_run.sync(run, client=client, body=body)
    assert (recorded.id, recorded.status_code) == (run, "succeeded"), recorded
    (automatic,) = ended(client, run, 1)

    key = str(uuid.uuid4())
    asked = [
        create_redelivery.sync(run, client=client, body=CreateRedeliveryBody(), idempotency_key=key)
        for _ in range(2)
    ]
    assert asked[0].id == asked[1].id != automatic.id, "one key makes one redelivery"
    redelivery, before = ended(client, run, 2)
    assert (redelivery.id, before.id) == (asked[0].id, automatic.id)
    assert redelivery.status_code == DeliveryStatus.SUCCEEDED and not redelivery.is_automatic
    assert [attempt.status_code for attempt in redelivery.attempts] == [200], redelivery.attempts
    assert get_delivery.sync(redelivery.id, client=client) == redelivery

    page = list_deliveries.sync(client=client, run_id=run, limit=1)
    rest = list_deliveries.sync(client=client, run_id=run, limit=1, pq=page.next_)
    assert [item.id for item in page.items + rest.items] == [redelivery.id, automatic.id]

    fields = [ListDeliveriesFieldsItem.ATTEMPTS_TIMING]
    (shown,) = list_deliveries.sync(client=client, run_id=run, limit=1, fields=fields).items
    assert isinstance(shown, PartialDelivery) and set(shown.to_dict()) == {"attempts"}, shown
    assert isinstance(shown.attempts[0].timing, Timing) and not redelivery.attempts[0].timing
    refused = withdraw_delivery.sync(redelivery.id, client=client, body=WithdrawDeliveryBody())
    assert isinstance(refused, ErrorBody) and refused.code == "CONFLICT", refused
    print("the generated client performed a redelivery and read its history")


main(*sys.argv[1:])
