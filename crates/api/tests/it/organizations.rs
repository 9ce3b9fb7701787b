//! Other organizations' resources look exactly like resources that do not exist (contract section 3).

use contracts::Scopes;
use futures_util::future::join_all;
use reqwest::Method;
use store::Deliver;
use uuid::Uuid;

use crate::harness::{Reply, TestApi, send};

testkit::on_both_backends!(a_thousand_foreign_ids_are_answered_like_unknown_ones_by_every_call);

/// Number of foreign IDs requested from each call.
const PAIRS: usize = 1_000;

async fn a_thousand_foreign_ids_are_answered_like_unknown_ones_by_every_call(mut api: TestApi) {
    let foreign = api.org;
    let policy = store::AcceptPolicy { max_attempts: 1, payload_format: contracts::PayloadFormat::Python };
    let keyring = testkit::keyring();
    let update = testkit::terminal_run("https://example.com/");
    let made = api.store.write(move |tx, now| {
        let (mut runs, mut deliveries, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let run = contracts::RunId::new(now);
            let deliver = Deliver::Automatically;
            store::record_run(tx, now, &policy, deliver, (foreign, run), &update, &"req".into())?;
            runs.push(run.0);
            let found = testkit::deliveries_of_run(tx, foreign, run)?.unwrap_or_default();
            deliveries.push(found[0].id.0);
            secrets.push(store::create_secret(tx, now, &keyring, foreign, None)?.secret.id.0);
        }
        Ok::<_, store::StoreError>((runs, deliveries, secrets))
    });
    let (runs, deliveries, secrets) = made.await.unwrap();
    (api.org, api.token) = api.another_organization().await;
    assert_eq!(api.token(Scopes::All).await.len(), api.token.len());

    for (method, before, after, ids, code) in [
        (Method::GET, "/v1/runs/", "", &runs, "RUN_NOT_FOUND"),
        (Method::GET, "/v1/runs/", "/callback", &runs, "RUN_NOT_FOUND"),
        (Method::POST, "/v1/runs/", "/callback-redeliveries", &runs, "RUN_NOT_FOUND"),
        (Method::POST, "/v1/runs/", "/callback-redeliveries?supersede=true", &runs, "RUN_NOT_FOUND"),
        (Method::GET, "/v1/callback-deliveries/", "", &deliveries, "CALLBACK_DELIVERY_NOT_FOUND"),
        (Method::GET, "/v1/callback-secrets/", "", &secrets, "CALLBACK_SECRET_NOT_FOUND"),
        (Method::PATCH, "/v1/callback-secrets/", "", &secrets, "CALLBACK_SECRET_NOT_FOUND"),
        (Method::DELETE, "/v1/callback-secrets/", "", &secrets, "CALLBACK_SECRET_NOT_FOUND"),
    ] {
        let ask = |id: Uuid| {
            let request = api.request(method.clone(), &format!("{before}{id}{after}"));
            // Only values chosen by the client may differ.
            let request = request.header("x-request-id", "same").header("content-type", "application/json");
            send(if method == Method::PATCH { request.body(r#"{"label": "x"}"#) } else { request })
        };
        for ids in ids.chunks(50) {
            let pairs = ids.iter().map(|id| async { (ask(*id).await, ask(Uuid::new_v4()).await) });
            for (hidden, unknown) in join_all(pairs).await {
                assert_eq!(unknown.error(), (404, code.to_owned()), "{method} {before}{after}");
                assert_eq!(without_date(hidden), without_date(unknown), "{method} {before}{after}");
            }
        }
    }
    // Lists and filters do not reveal them either.
    for run in runs.iter().take(50) {
        let list = api.get(&format!("/v1/callback-deliveries?run_id={run}")).await;
        assert_eq!(list.text, r#"{"items":[],"first":null,"next":null,"previous":null}"#);
    }
}

fn without_date(mut reply: Reply) -> Reply {
    reply.headers.remove("date");
    reply
}
