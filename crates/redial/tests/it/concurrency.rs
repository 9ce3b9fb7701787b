//! Many concurrent clients, and an api that is killed while serving them.

use std::collections::HashSet;

use contracts::RunId;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::Value;
use uuid::Uuid;

use crate::system::{System, shared_broker};

/// Of 64 concurrent redeliveries of a run, exactly one is accepted; the others name it.
#[tokio::test(flavor = "multi_thread")]
async fn of_sixty_four_redeliveries_of_each_of_two_hundred_runs_exactly_one_is_accepted() {
    let system = System::start(&shared_broker(), 2, 0, &[]);
    let runs = system.import_runs(200, "/ok");
    let ask = async |run: RunId, api: usize| {
        let url = system.url(api, &format!("/v1/runs/{run}/callback-redeliveries"));
        let response = system.http.post(url).bearer_auth(&system.token).send().await.unwrap();
        (
            response.status().as_u16(),
            serde_json::from_slice::<Value>(&response.bytes().await.unwrap()).unwrap(),
        )
    };
    let race = |run: RunId| {
        let ask = &ask;
        async move { join_all((0..64).map(|n| ask(run, n % 2))).await }
    };
    let races: Vec<_> = futures_util::stream::iter(runs).map(race).buffer_unordered(4).collect().await;
    for answers in races {
        let (accepted, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.0 == 201);
        assert_eq!((accepted.len(), refused.len()), (1, 63));
        for (status, body) in refused {
            assert_eq!((status, &body["errors"][0]["type"]), (422, &"conflict".into()), "{body}");
            assert_eq!(body["errors"][0]["delivery_id"], accepted[0].1["id"]);
        }
    }
    system.stop().await;
}

/// Fifty times: 50 POSTs with one key, the api killed in between, and all repeated by clients that got no
/// response.
#[tokio::test(flavor = "multi_thread")]
async fn posts_with_one_key_create_one_delivery_although_the_api_is_killed_in_between() {
    let mut system = System::start(&shared_broker(), 0, 0, &[]);
    let runs = system.import_runs(50, "/ok");
    let mut interrupted = 0;
    for (n, run) in runs.into_iter().enumerate() {
        system.add_api();
        let key = Uuid::new_v4().to_string();
        let url = system.url(0, &format!("/v1/runs/{run}/callback-redeliveries"));
        let post = |url: String| {
            let request = system.http.post(url).bearer_auth(&system.token).header("idempotency-key", &key);
            async move { accepted_text(request).await }
        };
        let posts: Vec<_> = (0..50).map(|_| tokio::spawn(post(url.clone()))).collect();
        let victim = system.apis.remove(0);
        // Kill it sometimes at once, sometimes after some responses.
        let mut posts = posts.into_iter();
        let mut answers = Vec::new();
        for post in posts.by_ref().take(n % 10) {
            answers.push(post.await.unwrap());
        }
        victim.kill();
        for post in posts {
            answers.push(post.await.unwrap());
        }
        interrupted += usize::from(answers.iter().any(Option::is_none));
        system.add_api();
        let url = system.url(0, &format!("/v1/runs/{run}/callback-redeliveries"));
        let post = |url: String| {
            let request = system.http.post(url).bearer_auth(&system.token).header("idempotency-key", &key);
            async move { accepted_text(request).await }
        };
        let again = join_all((0..50).map(|_| post(url.clone()))).await;
        assert!(again.iter().all(Option::is_some), "a running api responds");
        let distinct: HashSet<_> = answers.into_iter().chain(again).flatten().collect();
        assert_eq!(distinct.len(), 1, "all answers are the same");
        let history = system.http.get(system.url(0, &format!("/v1/runs/{run}/callback")));
        let history: Value = serde_json::from_slice(
            &history.bearer_auth(&system.token).send().await.unwrap().bytes().await.unwrap(),
        )
        .unwrap();
        assert_eq!(history.as_array().unwrap().len(), 1, "{history}");
        system.apis.remove(0).kill();
    }
    assert!(interrupted > 0, "the kills came too late");
    system.stop().await;
}

/// Returns the body of a 201, or `None` if the connection was lost.
async fn accepted_text(request: reqwest::RequestBuilder) -> Option<String> {
    let response = request.send().await.ok()?;
    assert_eq!(response.status(), 201);
    response.text().await.ok()
}
