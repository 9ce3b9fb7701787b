//! The API description and its documentation page.

use reqwest::Method;
use serde_json::Value;

use crate::harness::{TestApi, send};

testkit::on_both_backends!(
    the_description_needs_no_token_and_says_what_is_served,
    every_call_is_described_with_its_scope_responses_and_examples,
    the_page_works_offline,
);

async fn the_description_needs_no_token_and_says_what_is_served(api: TestApi) {
    let reply = send(api.bare(Method::GET, "/openapi.json")).await;
    assert_eq!(reply.status, 200);
    insta::assert_json_snapshot!("openapi", reply.json(), {".info.version" => "[version]"});
}

async fn every_call_is_described_with_its_scope_responses_and_examples(api: TestApi) {
    let description = api.get("/openapi.json").await.json();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = format!("{method} {path}");
            assert_ne!(operation["operationId"], "", "{name}");
            assert_ne!(operation["summary"], "", "{name}");
            let open = path == "/v1/health";
            assert_eq!(operation["security"][0]["bearer"][0].is_string(), !open, "{name}");
            assert_eq!(operation["responses"].get("401").is_some(), !open, "{name}");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let content = &answer["content"]["application/json"];
                let has = |key| content.get(key).is_some_and(|value| *value != Value::Null);
                assert!(status == "204" || has("example") || has("examples"), "{name} {status}");
            }
        }
    }
}

async fn the_page_works_offline(api: TestApi) {
    let page = api.bare(Method::GET, "/docs").send().await.unwrap(); // follows the redirect
    assert_eq!(page.url().path(), "/docs/");
    assert_eq!(page.headers()["content-type"], "text/html");
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
    let page = page.text().await.unwrap();
    assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    for file in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"] {
        assert!(page.contains(file), "{page}");
        let asset = api.bare(Method::GET, &format!("/docs/{file}")).send().await.unwrap();
        assert_eq!(asset.status(), 200, "{file}");
        if file == "swagger-initializer.js" {
            assert!(asset.text().await.unwrap().contains("../openapi.json"));
        }
    }
    assert_eq!(send(api.bare(Method::GET, "/docs/nothing")).await.error(), (404, "NOT_FOUND".into()));
}
