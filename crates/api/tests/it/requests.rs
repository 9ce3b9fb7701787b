//! Behaviour common to all calls: IDs, parameters, bodies, paths, methods and the error envelope.

use reqwest::Method;

use crate::harness::{MAX_BODY, RUN, TestApi, redeliveries, send};

testkit::on_both_backends!(
    a_request_id_is_accepted_or_generated_and_echoed,
    an_id_in_the_path_must_be_a_hyphenated_uuid,
    unknown_query_parameters_are_refused_on_every_call,
    a_body_must_be_declared_as_json,
    a_body_over_the_limit_is_refused_whether_announced_or_not,
    an_unknown_path_is_not_found,
    a_wrong_method_is_answered_with_the_allowed_ones,
);

async fn a_request_id_is_accepted_or_generated_and_echoed(api: TestApi) {
    let echoed = async |path: &str, id: &str| {
        let reply = send(api.bare(Method::GET, path).header("x-request-id", id)).await;
        reply.header("x-request-id").to_owned()
    };
    let longest = "a".repeat(128);
    for id in ["Az09._-", &longest] {
        for path in ["/v1/health", "/v1/runs/x", "/nowhere"] {
            assert_eq!(echoed(path, id).await, id);
        }
    }
    for refused in ["", "a b", "é", "a/b", &format!("{longest}a")] {
        let made = echoed("/v1/health", refused).await;
        assert_ne!(made, refused);
        assert!(uuid::Uuid::parse_str(&made).is_ok(), "{made}");
    }
}

async fn an_id_in_the_path_must_be_a_hyphenated_uuid(api: TestApi) {
    let simple = RUN.replace('-', "");
    for id in ["x", &simple, &format!("{{{RUN}}}"), &format!("urn:uuid:{RUN}"), "%ff", &RUN.replace('a', "g")]
    {
        let request = api.request(Method::POST, &redeliveries(id));
        assert_eq!(send(request).await.invalid(), ["path.run_id uuid_parsing"], "{id}");
        let delivery = api.get(&format!("/v1/callback-deliveries/{id}")).await;
        assert_eq!(delivery.invalid(), ["path.id uuid_parsing"], "{id}");
    }
    let upper_case = api.get(&format!("/v1/runs/{}", RUN.to_uppercase())).await;
    assert_eq!(upper_case.error(), (404, "RUN_NOT_FOUND".into()));
}

async fn unknown_query_parameters_are_refused_on_every_call(api: TestApi) {
    let run = format!("/v1/runs/{RUN}");
    for (method, path) in [
        (Method::GET, "/v1/health".to_owned()),
        (Method::GET, run.clone()),
        (Method::PUT, run.clone()),
        (Method::GET, format!("{run}/callback")),
        (Method::POST, redeliveries(RUN)),
        (Method::GET, format!("/v1/callback-deliveries/{RUN}")),
        (Method::POST, "/v1/callback-secrets".to_owned()),
        (Method::GET, format!("/v1/callback-secrets/{RUN}")),
        (Method::PATCH, format!("/v1/callback-secrets/{RUN}")),
        (Method::DELETE, format!("/v1/callback-secrets/{RUN}")),
    ] {
        let reply = send(api.request(method, &format!("{path}?superseded=true&a%20b"))).await;
        assert_eq!(
            reply.invalid(),
            ["query.superseded extra_forbidden", "query.a b extra_forbidden"],
            "{path}"
        );
    }
    assert_eq!(api.get("/v1/health?").await.status, 200);
}

async fn a_body_must_be_declared_as_json(api: TestApi) {
    let put = |content_type: Option<&str>| {
        let request =
            api.request(Method::PUT, &format!("/v1/runs/{RUN}")).body(r#"{"status_code": "queued"}"#);
        content_type.into_iter().fold(request, |request, value| request.header("content-type", value))
    };
    for refused in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("json")] {
        assert_eq!(send(put(refused)).await.error(), (415, "UNSUPPORTED_MEDIA_TYPE".into()), "{refused:?}");
    }
    let empty = api.request(Method::PUT, &format!("/v1/runs/{RUN}"));
    assert_eq!(send(empty).await.status, 415);
    for path in [&*redeliveries(RUN), "/v1/callback-secrets"] {
        let request = api.request(Method::POST, path).body("{}");
        assert_eq!(send(request).await.error(), (415, "UNSUPPORTED_MEDIA_TYPE".into()));
    }
    assert_eq!(api.get(&format!("/v1/runs/{RUN}")).await.status, 404);
    assert_eq!(send(put(Some("Application/JSON; charset=utf-8"))).await.status, 201);
}

async fn a_body_over_the_limit_is_refused_whether_announced_or_not(api: TestApi) {
    let path = format!("/v1/runs/{RUN}");
    let run = r#"{"status_code": "queued"}"#;
    let body = |len: usize| run.to_owned() + &" ".repeat(len - run.len());
    let too_large = (413, "PAYLOAD_TOO_LARGE".into());
    assert_eq!(send(api.put(&path, body(MAX_BODY + 1))).await.error(), too_large);
    let head = |framing: &str| {
        let token = &api.token;
        format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
            Content-Type: application/json\r\n{framing}\r\n\r\n"
        )
    };
    // Refused before any byte of the body.
    let announced = api.raw(&head("Content-Length: 100000000")).await;
    // Refused before the end of the body.
    let chunk = body(MAX_BODY + 1);
    let dripped =
        api.raw(&format!("{}{:x}\r\n{chunk}\r\n", head("Transfer-Encoding: chunked"), chunk.len())).await;
    for answer in [announced, dripped] {
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains(r#"{"code":"PAYLOAD_TOO_LARGE","#), "{answer}");
    }
    assert_eq!(api.get(&path).await.status, 404);
    assert_eq!(send(api.put(&path, body(MAX_BODY))).await.status, 201);
}

async fn an_unknown_path_is_not_found(api: TestApi) {
    for path in ["/", "/v1", "/v1/runs/", "/v1/health/", "/v2/health", "/v1/runs/a/b", "/v1/%2e%2e/health"] {
        assert_eq!(api.get(path).await.error(), (404, "NOT_FOUND".into()), "{path}");
    }
}

async fn a_wrong_method_is_answered_with_the_allowed_ones(api: TestApi) {
    let run = format!("/v1/runs/{RUN}");
    for (method, path, allow) in [
        (Method::POST, "/v1/health", "GET"),
        (Method::DELETE, &*run, "GET, PUT"),
        (Method::OPTIONS, &*run, "GET, PUT"),
        (Method::GET, &*redeliveries(RUN), "POST"),
        (Method::PATCH, "/v1/callback-secrets", "POST, GET"),
    ] {
        let reply = send(api.request(method, path)).await;
        assert_eq!(reply.error(), (405, "METHOD_NOT_ALLOWED".into()));
        assert_eq!(reply.header("allow"), allow);
    }
}
