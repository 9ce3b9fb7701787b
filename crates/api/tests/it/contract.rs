//! Walks through every row of contract section 3: status, headers and exact text of each response.

use std::collections::HashMap;
use std::time::Duration;

use contracts::Scopes;
use engine::Settlement;
use reqwest::Method;

use crate::harness::{RUN, SUCCEEDED, TestApi, redeliveries, send};

testkit::on_both_backends!(every_call_is_answered_as_the_contract_says);

async fn every_call_is_answered_as_the_contract_says(mut api: TestApi) {
    let mut story = Story::default();
    let run = format!("/v1/runs/{RUN}");
    let json = "application/json";

    story.ask(&api, Method::GET, "/v1/health", None, &[]).await;
    story.ask(&api, Method::GET, "/v1/runs/statuses", None, &[]).await;
    story.ask(&api, Method::POST, "/v1/callback-secrets", Some(r#"{"label": "first"}"#), &[]).await;
    story.ask(&api, Method::PUT, &run, Some(r#"{"status_code": "running"}"#), &[]).await;
    story.ask(&api, Method::POST, &redeliveries(RUN), None, &[]).await;
    story.ask(&api, Method::PUT, &run, Some(SUCCEEDED), &[]).await;
    story.ask(&api, Method::PUT, &run, Some(r#"{"status_code": "failed"}"#), &[]).await;
    story.ask(&api, Method::GET, &run, None, &[]).await;
    story.ask(&api, Method::POST, &redeliveries(RUN), None, &[]).await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.clock.advance(Duration::from_secs(1));
    api.finish(&job, Some(503), Settlement::RetryAt(api.clock.now())).await;
    let supersede = format!("{}?supersede=true", redeliveries(RUN));
    let key = [("idempotency-key", "k-1")];
    let accepted = story.ask(&api, Method::POST, &supersede, None, &key).await;
    story.ask(&api, Method::POST, &supersede, None, &key).await;
    story.ask(&api, Method::POST, &redeliveries(RUN), None, &key).await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.finish(&job, None, Settlement::Succeeded).await;
    story.ask(&api, Method::GET, &format!("{run}/callback"), None, &[]).await;
    story.ask(&api, Method::GET, &format!("/v1/callback-deliveries/{}", accepted.id()), None, &[]).await;
    story.ask(&api, Method::GET, "/v1/callback-deliveries?status_code=failed&limit=1", None, &[]).await;
    story.ask(&api, Method::GET, "/v1/runs?limit=1", None, &[]).await;

    api.clock.advance(Duration::from_secs(1));
    let accepted = api.redeliver().await;
    api.doorbell().await;
    let withdraw = format!("/v1/callback-deliveries/{}/withdraw", accepted.id());
    story.ask(&api, Method::POST, &withdraw, None, &[]).await;
    let withdraw = format!("/v1/callback-deliveries/{}/withdraw", job.delivery_id);
    story.ask(&api, Method::POST, &withdraw, None, &[]).await;
    let fields = "id,failure_reason_code,attempts.timing";
    story.ask(&api, Method::GET, &format!("{run}/callback?fields={fields}"), None, &[]).await;
    story.ask(&api, Method::GET, "/v1/runs?limit=1&fields=id,colour", None, &[]).await;

    let secret = api.post("/v1/callback-secrets", "").await.json()["id"].as_str().unwrap().to_owned();
    let secret = format!("/v1/callback-secrets/{secret}");
    story.ask(&api, Method::PATCH, &secret, Some(r#"{"is_current": true, "label": "second"}"#), &[]).await;
    story.ask(&api, Method::GET, &secret, None, &[]).await;
    let deleted = api.request(Method::DELETE, &secret).header("x-request-id", "walk").send().await.unwrap();
    story.told(&format!("DELETE {secret}"), deleted.status().as_u16(), deleted.headers(), "");
    story.ask(&api, Method::PATCH, &secret, Some(r#"{"is_current": true}"#), &[]).await;
    story.ask(&api, Method::GET, "/v1/callback-secrets", None, &[]).await;

    let unknown = "00000000-0000-4000-8000-000000000000";
    story.ask(&api, Method::GET, &format!("/v1/runs/{unknown}"), None, &[]).await;
    story.ask(&api, Method::GET, &format!("/v1/callback-deliveries/{unknown}"), None, &[]).await;
    story.ask(&api, Method::GET, &format!("/v1/callback-secrets/{unknown}"), None, &[]).await;
    story.ask(&api, Method::GET, "/v1/runs/7?a=1", None, &[]).await;
    story.ask(&api, Method::GET, &run, None, &[("x-organization-id", unknown)]).await;
    story.ask(&api, Method::GET, &run, None, &[("x-organization-id", "7")]).await;
    story.ask(&api, Method::GET, "/v2", None, &[]).await;
    story.ask(&api, Method::PATCH, &run, None, &[]).await;
    story.ask(&api, Method::PUT, &run, Some("{"), &[]).await;
    let plain = api.request(Method::PUT, &run).header("content-type", "text/plain").body("{}");
    story.tell("PUT as text/plain", plain).await;
    let long = api.put(&run, " ".repeat(crate::harness::MAX_BODY + 1));
    story.tell("PUT of too much", long).await;
    api.token = api.token(Scopes::Named(vec![contracts::Scope::RunsExecute])).await;
    story.ask(&api, Method::GET, &run, None, &[]).await;
    let bare = api.bare(Method::GET, &run).header("content-type", json);
    story.tell("GET without a token", bare).await;
    insta::assert_snapshot!("contract", story.text);
}

/// Transcript of requests and responses, with a placeholder for each ID.
#[derive(Default)]
struct Story {
    text: String,
    names: HashMap<String, String>,
}

impl Story {
    async fn ask(
        &mut self,
        api: &TestApi,
        method: Method,
        path: &str,
        body: Option<&'static str>,
        headers: &[(&str, &str)],
    ) -> crate::harness::Reply {
        let mut request = api.request(method.clone(), path);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.tell(&format!("{method} {path}"), request).await
    }

    async fn tell(&mut self, what: &str, request: reqwest::RequestBuilder) -> crate::harness::Reply {
        let reply = send(request.header("x-request-id", "walk")).await;
        self.told(what, reply.status, &reply.headers, &reply.text);
        reply
    }

    fn told(&mut self, what: &str, status: u16, headers: &reqwest::header::HeaderMap, body: &str) {
        let mut shown: Vec<String> = headers
            .iter()
            .filter(|(name, _)| !["date", "content-length"].contains(&name.as_str()))
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        shown.sort();
        let told = format!("# {what}\n{status}\n{}\n{}\n\n", shown.join("\n"), body.replace(",\"", ",\n\""));
        let told = self.named(&told);
        self.text.push_str(&told);
    }

    /// Replaces values that differ from run to run: secrets, version 7 UUIDs and cursors.
    fn named(&mut self, text: &str) -> String {
        let mut named = String::new();
        for piece in text.split_inclusive(['"', '\n', ' ']) {
            let (word, end) = piece.split_at(piece.len().saturating_sub(1));
            if word.starts_with("whsec_") {
                named.push_str(&self.name("secret", word)); // before the split at slashes
            } else if word.len() > 30 && word.starts_with("AQ") {
                named.push_str(&self.name("cursor", word));
            } else {
                let steps: Vec<String> = word
                    .split('/')
                    .map(|step| match step.len() == 36 && step.as_bytes()[14] == b'7' {
                        true => self.name("id", step),
                        false => step.to_owned(),
                    })
                    .collect();
                named.push_str(&steps.join("/"));
            }
            named.push_str(end);
        }
        named
    }

    fn name(&mut self, kind: &str, word: &str) -> String {
        let number = self.names.len() + 1;
        self.names.entry(word.to_owned()).or_insert_with(|| format!("<{kind} {number}>")).clone()
    }
}
