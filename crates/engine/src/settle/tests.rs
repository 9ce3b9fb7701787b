use contracts::{AttemptNumber, ClaimId, DeliveryId, Destination, OrgId, RunId};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const CAP: Duration = Duration::from_secs(900);

fn policy() -> RetryPolicy {
    let schedule = vec![Duration::from_secs(10), Duration::from_secs(60)];
    RetryPolicy { schedule, jitter: 0.1, stop_on_gone: false, hold_cap: CAP }
}

fn now() -> Timestamp {
    Timestamp::parse("2023-11-07T05:31:56Z").unwrap()
}

fn held(attempt: AttemptNumber, is_probe: bool) -> HeldAttempt {
    HeldAttempt {
        delivery_id: DeliveryId(Uuid::nil()),
        org_id: OrgId(Uuid::nil()),
        run_id: RunId(Uuid::nil()),
        destination: Destination::from(1),
        attempt,
        max_attempts: 8,
        is_automatic: false,
        created_at: now(),
        request: "r".into(),
        claim_id: ClaimId(Uuid::nil()),
        claimed_at: now(),
        is_probe,
    }
}

fn answered(status: u16, retry_after: Option<&str>) -> Outcome {
    let retry_after = retry_after.map(str::to_owned).into_iter().collect();
    Outcome::Answered(Response { status, body: String::new(), retry_after })
}

fn settled(outcome: Outcome, attempt: AttemptNumber) -> AttemptResult {
    let id = AttemptId(Uuid::nil());
    policy().settle(&held(attempt, false), id, outcome, Measured::default(), now(), 0.0)
}

fn hold_after(outcome: Outcome, is_probe: bool) -> HoldChange {
    let id = AttemptId(Uuid::nil());
    policy().settle(&held(1, is_probe), id, outcome, Measured::default(), now(), 0.0).hold
}

fn wait_after(outcome: Outcome, attempt: AttemptNumber) -> Option<Duration> {
    match settled(outcome, attempt).settlement {
        Settlement::RetryAt(at) => Some(at.since(now())),
        _ => None,
    }
}

#[test]
fn any_2xx_succeeds_and_anything_else_is_retried() {
    for status in [200, 201, 204, 299] {
        let result = settled(answered(status, None), 1);
        assert_eq!((result.record.failure, result.settlement), (None, Settlement::Succeeded));
    }
    for status in [100, 301, 302, 400, 404, 410, 429, 500, 503] {
        assert_eq!(wait_after(answered(status, None), 1), Some(Duration::from_secs(10)), "{status}");
    }
}

#[test]
fn a_redirect_is_recorded_with_its_target() {
    let headers = Some([("location".to_owned(), "https://example.com/new".to_owned())].into());
    let measured = Measured { timing: Timing { headers, ..Timing::default() }, ..Measured::default() };
    let (id, outcome) = (AttemptId(Uuid::nil()), answered(301, None));
    let result = policy().settle(&held(1, false), id, outcome, measured, now(), 0.0);
    let detail =
        "the receiver answered 301 Moved Permanently to https://example.com/new; redirects are not followed";
    assert_eq!(result.record.failure.unwrap().detail, detail);
}

#[test]
fn waits_follow_the_schedule_and_the_last_one_repeats() {
    let waits: Vec<_> = (1..=4).map(|n| wait_after(answered(500, None), n).unwrap().as_secs()).collect();
    assert_eq!(waits, [10, 60, 60, 60]);
}

#[test]
fn the_last_attempt_of_the_budget_fails_the_delivery() {
    let result = settled(answered(503, None), 8);
    assert_eq!(result.settlement, Settlement::Failed);
    assert_eq!(result.record.failure.unwrap().detail, "the receiver answered 503 Service Unavailable");
}

#[test]
fn retry_after_lengthens_a_wait_but_never_shortens_it_and_is_capped() {
    let wait = |status, header| wait_after(answered(status, Some(header)), 1).unwrap().as_secs();
    assert_eq!(wait(503, "30"), 30);
    assert_eq!(wait(429, "30"), 30);
    assert_eq!(wait(503, "3"), 10);
    assert_eq!(wait(503, "86400"), 3600);
    assert_eq!(wait(503, "Tue, 07 Nov 2023 05:32:56 GMT"), 60);
    assert_eq!(wait(503, "Mon, 06 Nov 2023 05:32:56 GMT"), 10);
    assert_eq!(wait(503, "soon"), 10);
    assert_eq!(wait(500, "30"), 10);
}

/// Returns the wait that these `Retry-After` headers of a 503 ask for.
fn asked(headers: &[&str]) -> Option<Duration> {
    let headers = headers.iter().map(|header| (*header).to_owned()).collect();
    retry_after(&Response { status: 503, body: String::new(), retry_after: headers }, now())
}

#[test]
fn a_retry_after_of_any_size_is_read_and_capped() {
    for seconds in ["3601", "99999999999999999999", &"9".repeat(400), "3600.5"] {
        assert_eq!(asked(&[seconds]), Some(Duration::from_secs(3600)), "{seconds}");
    }
    assert_eq!(asked(&["0"]), Some(Duration::ZERO));
    assert_eq!(asked(&[" 1.5 "]), Some(Duration::from_millis(1500)));
    assert_eq!(asked(&["0.25"]), Some(Duration::from_millis(250)));
}

#[test]
fn the_longest_of_several_retry_afters_counts() {
    assert_eq!(asked(&["10", "30", "20"]), Some(Duration::from_secs(30)));
    assert_eq!(asked(&["10, 30 ,20"]), Some(Duration::from_secs(30)));
    assert_eq!(asked(&["soon", "10", "-30"]), Some(Duration::from_secs(10)));
    let dated = "5, Tue, 07 Nov 2023 05:32:56 GMT, soon, Tuesday, 07-Nov-23 05:33:26 GMT,20";
    assert_eq!(asked(&[dated]), Some(Duration::from_secs(90)));
}

#[test]
fn a_retry_after_may_be_an_http_date_or_an_email_date() {
    for date in [
        "Tue, 07 Nov 2023 05:32:56 GMT",
        "Tuesday, 07-Nov-23 05:32:56 GMT",
        "Tue Nov  7 05:32:56 2023",
        "Tue, 07 Nov 2023 05:32:56 +0000",
        "Tue, 07 Nov 2023 05:32:56 -0000",
        "Tue, 7 Nov 2023 05:32:56 UTC",
        "07 Nov 2023 05:32:56 UT",
        "Tue, 07 Nov 2023 00:32:56 -0500",
        "Tue, 07 Nov 2023 00:32:56 EST",
        "Tue, 07 Nov 2023 11:02:56 +0530",
    ] {
        assert_eq!(asked(&[date]), Some(Duration::from_secs(60)), "{date}");
    }
    assert_eq!(asked(&["Mon, 06 Nov 2023 05:32:56 +0000"]), Some(Duration::ZERO));
    assert_eq!(asked(&["Fri, 31 Dec 9999 23:59:59 GMT"]), Some(Duration::from_secs(3600)));
}

#[test]
fn an_invalid_retry_after_is_ignored() {
    let nonsense = [
        "",
        " ",
        ",",
        "soon",
        "-1",
        "-1.5",
        ".",
        "1.2.3",
        "1e3",
        "inf",
        "NaN",
        "0x10",
        "5s",
        "2023-11-07",
        "Tue",
        "\u{0}",
    ];
    for text in nonsense {
        assert_eq!(asked(&[text]), None, "{text}");
    }
    assert_eq!(asked(&[]), None);
}

#[test]
fn a_410_ends_the_delivery_if_stop_on_gone_is_set() {
    let stop = RetryPolicy { stop_on_gone: true, ..policy() };
    let id = AttemptId(Uuid::nil());
    let result = stop.settle(&held(1, false), id, answered(410, None), Measured::default(), now(), 0.0);
    let reason = result.record.failure.unwrap().reason;
    assert_eq!((reason, result.settlement), (FailureReason::Gone, Settlement::Failed));
}

#[test]
fn a_retry_after_on_429_and_503_holds_the_destination_up_to_the_cap() {
    let until = |seconds| HoldChange::HoldUntil(now() + Duration::from_secs(seconds));
    assert_eq!(hold_after(answered(429, Some("30")), false), until(30));
    assert_eq!(hold_after(answered(503, Some("30")), true), until(30));
    assert_eq!(hold_after(answered(503, Some("3600")), false), until(CAP.as_secs()));
    assert_eq!(hold_after(answered(503, None), false), HoldChange::None);
    assert_eq!(hold_after(answered(429, Some("0")), false), HoldChange::None);
    assert_eq!(hold_after(answered(500, Some("30")), false), HoldChange::None);
}

#[test]
fn a_probe_without_a_new_hold_opens_its_destination() {
    for outcome in [answered(200, None), answered(503, None), Outcome::failed(FailureReason::Timeout, "")] {
        assert_eq!(hold_after(outcome, true), HoldChange::Open);
    }
    assert_eq!(hold_after(Outcome::NotSent(LocalFailure::NoSocket), true), HoldChange::ProbeAgain);
}

#[test]
fn an_attempt_that_was_not_sent_is_handed_back_even_if_it_was_the_last() {
    let result = settled(Outcome::NotSent(LocalFailure::NoNameServer), 8);
    assert!(matches!(result.settlement, Settlement::HandedBack(at) if at > now()));
}

proptest! {
    #[test]
    fn jitter_keeps_a_wait_within_its_share(attempt in 1..8_i32, jitter_unit in -1.0..=1.0_f64) {
        let id = AttemptId(Uuid::nil());
        let result = policy().settle(&held(attempt, false), id, answered(500, None), Measured::default(), now(), jitter_unit);
        let Settlement::RetryAt(at) = result.settlement
        else { panic!("budget is left") };
        let planned = if attempt == 1 { 10.0 } else { 60.0 };
        let ratio = at.since(now()).as_secs_f64() / planned;
        prop_assert!((0.9 - 1e-6..=1.1 + 1e-6).contains(&ratio), "{ratio}");
    }
}
