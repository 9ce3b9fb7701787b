//! An api told to stop while load balancers still send requests to it.

use serde_json::Value;
use testkit::Signal;

use crate::system::{System, shared_broker};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_api_is_not_ready_but_serves_until_its_drain_delay_is_over() {
    let system = System::start(&shared_broker(), 1, 0, &[("REDIAL_API__DRAIN_DELAY", "1m")]);
    let run = system.import_runs(6, "/ok").remove(0);
    let ready = system.url(0, "/health/ready");
    let status = async || system.http.get(&ready).send().await.unwrap();
    assert_eq!(status().await.status(), 200);
    system.apis[0].signal(Signal::TERM);
    let refused = loop {
        let answer = status().await;
        if answer.status() != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status(), 503);
    let reason: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert!(reason["message"].as_str().unwrap().contains("stopping"), "{reason}");
    assert_eq!(system.redeliver(0, run).await["status_code"], "pending");
    // A second signal ends the delay. `System::stop` checks the exit status.
    system.stop().await;
}
