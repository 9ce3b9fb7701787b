//! Paged lists: complete even if rows have equal columns, and each page is a range of an index.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::store::{
    AnyConnection, DeliveryFilter, DeliveryParts, PageRequest, Position, Rows, RunParts, SortOrder,
    StoreError, deliveries_page, runs_page, secrets_page,
};
use contracts::{DeliveryStatus, FailureReason, OrgId};
use diesel::connection::{Connection, InstrumentationEvent};
use diesel::prelude::*;
use testkit::Backend;

use crate::stage::{Stage, start};

testkit::on_both_backends!(
    rows_with_the_same_time_are_on_one_page_each_in_id_order,
    a_page_is_bounded_by_its_position_and_by_its_times,
    a_page_reads_an_index_from_its_position_on,
);

const FIRST: PageRequest = PageRequest { limit: 7, ..PageRequest::NEWEST };

fn positions<T>(rows: &Rows<T>) -> Vec<Position> {
    rows.rows.iter().map(|(at, _)| *at).collect()
}

/// Pages through a list from first to last, and back.
fn walk<T>(order: SortOrder, mut page: impl FnMut(&PageRequest) -> Rows<T>) -> [Vec<Position>; 2] {
    let (mut forth, mut request) = (Vec::new(), PageRequest { order, ..FIRST });
    loop {
        let rows = page(&request);
        forth.extend(positions(&rows));
        request.from = forth.last().copied();
        if !rows.more {
            break;
        }
    }
    let mut back: Vec<Position> = forth.last().copied().into_iter().collect();
    request.backwards = true;
    loop {
        request.from = back.first().copied();
        let rows = page(&request);
        back.splice(0..0, positions(&rows));
        if !rows.more {
            return [forth, back];
        }
    }
}

async fn rows_with_the_same_time_are_on_one_page_each_in_id_order(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (delivery, org) = (stage.accept(), stage.org);
    stage.copy(delivery.id, 100, 1);
    let conn = &mut stage.conn;
    for order in [SortOrder::Ascending, SortOrder::Descending] {
        let deliveries = walk(order, |request| {
            let parts = DeliveryParts::SHOWN;
            deliveries_page(conn, org, &DeliveryFilter::default(), request, parts).unwrap()
        });
        let runs = walk(order, |request| runs_page(conn, org, None, request, RunParts::ALL).unwrap());
        for walked in deliveries.iter().chain(&runs) {
            let mut sorted: Vec<Position> =
                walked.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
            if order == SortOrder::Descending {
                sorted.reverse();
            }
            assert_eq!(walked.len(), 101);
            assert_eq!(*walked, sorted);
        }
    }
}

async fn a_page_is_bounded_by_its_position_and_by_its_times(backend: Backend) {
    let mut stage = Stage::new(backend);
    let moments: Vec<_> = (0..5).map(|second| start() + Duration::from_secs(second)).collect();
    let mut all = BTreeSet::new();
    for moment in &moments[1..4] {
        stage.now = *moment;
        let accepted = [stage.accept(), stage.accept()];
        all.extend(accepted.map(|delivery| Position { created_at: *moment, id: delivery.id.0 }));
    }
    let times: Vec<_> = moments.into_iter().map(Some).chain([None]).collect();
    let froms: Vec<_> = all.iter().copied().map(Some).chain([None]).collect();
    let mut requests = Vec::new();
    for from in froms {
        for (order, backwards) in [
            (SortOrder::Ascending, false),
            (SortOrder::Ascending, true),
            (SortOrder::Descending, false),
            (SortOrder::Descending, true),
        ] {
            for created_after in times.iter().copied() {
                for created_before in times.iter().copied() {
                    let limit = 2;
                    requests.push(PageRequest {
                        limit,
                        order,
                        from,
                        backwards,
                        created_after,
                        created_before,
                        ..FIRST
                    });
                }
            }
        }
    }
    for request in requests {
        let reads_descending = (request.order == SortOrder::Descending) != request.backwards;
        let mut expected: Vec<Position> = all
            .iter()
            .copied()
            .filter(|at| {
                let is_behind = |from| if reads_descending { *at < from } else { *at > from };
                request.from.is_none_or(is_behind)
                    && request.created_after.is_none_or(|after| at.created_at >= after)
                    && request.created_before.is_none_or(|before| at.created_at < before)
            })
            .collect();
        if reads_descending {
            expected.reverse();
        }
        let more = expected.len() > request.limit;
        expected.truncate(request.limit);
        if request.backwards {
            expected.reverse();
        }
        let (filter, parts) = (DeliveryFilter::default(), DeliveryParts::SHOWN);
        let rows = deliveries_page(&mut stage.conn, stage.org, &filter, &request, parts).unwrap();
        assert_eq!((positions(&rows), rows.more), (expected, more), "{request:?}");
    }
}

async fn a_page_reads_an_index_from_its_position_on(backend: Backend) {
    let mut stage = Stage::new(backend);
    let from = Some(Position { created_at: start(), id: uuid::Uuid::from_u128(1) });
    let (earlier, later) = (start(), start() + Duration::from_secs(1));
    for (order, row_comparison) in [(SortOrder::Ascending, '>'), (SortOrder::Descending, '<')] {
        let behind = PageRequest { order, from, ..FIRST };
        for request in [
            behind,
            PageRequest { created_after: Some(earlier), ..behind },
            PageRequest { created_before: Some(later), ..behind },
            PageRequest { created_after: Some(earlier), created_before: Some(later), ..behind },
        ] {
            for (list, page) in lists() {
                for plan in plans(&mut stage, |conn, org| page(conn, org, &request)) {
                    let bound = match backend {
                        Backend::Postgres => format!("(ROW(created_at, id) {row_comparison} ROW("),
                        Backend::Sqlite => format!("(created_at,id){row_comparison}(?,?)"),
                    };
                    let is_range = plan.iter().any(|line| {
                        (line.contains("Index Cond: ") || line.starts_with("SEARCH "))
                            && line.contains(&bound)
                    });
                    let is_sorted =
                        plan.iter().all(|line| !line.contains("Sort") && !line.contains("TEMP B-TREE"));
                    assert!(is_range && is_sorted, "{list}, {request:?}: {plan:#?}");
                }
            }
        }
    }
}

type Page = Box<dyn Fn(&mut AnyConnection, OrgId, &PageRequest) -> Result<(), StoreError>>;

/// All lists with an index for each of their filters, which excludes a run's deliveries.
fn lists() -> Vec<(&'static str, Page)> {
    let deliveries = |filter: DeliveryFilter| -> Page {
        Box::new(move |conn, org, request| {
            deliveries_page(conn, org, &filter, request, DeliveryParts::SHOWN).map(drop)
        })
    };
    let any = DeliveryFilter::default;
    let host = Some("hooks.example.com".to_owned());
    let reason = Some(FailureReason::Timeout);
    vec![
        ("deliveries", deliveries(any())),
        ("of a status", deliveries(DeliveryFilter { status_code: Some(DeliveryStatus::Failed), ..any() })),
        ("of a kind", deliveries(DeliveryFilter { is_automatic: Some(true), ..any() })),
        ("of a host", deliveries(DeliveryFilter { callback_host: host, ..any() })),
        ("of a failure", deliveries(DeliveryFilter { failure_reason_code: reason, ..any() })),
        ("runs", Box::new(|conn, org, request| runs_page(conn, org, None, request, RunParts::ALL).map(drop))),
        ("secrets", Box::new(|conn, org, request| secrets_page(conn, org, request).map(drop))),
    ]
}

/// Returns the plan of each statement that reads positions for a page.
fn plans(
    stage: &mut Stage,
    page: impl Fn(&mut AnyConnection, OrgId) -> Result<(), StoreError>,
) -> Vec<Vec<String>> {
    let statements = Arc::new(Mutex::new(Vec::new()));
    let seen = statements.clone();
    stage.conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            seen.lock().unwrap().push(query.to_string());
        }
    });
    page(&mut stage.conn, stage.org).unwrap();
    stage.conn.set_instrumentation(|_: InstrumentationEvent<'_>| {});
    let statements = std::mem::take(&mut *statements.lock().unwrap());
    let texts = statements.iter().filter_map(|statement| statement.split(" -- binds").next());
    let plans: Vec<_> =
        texts.filter(|text| text.contains("LIMIT")).map(|text| plan(&mut stage.conn, text)).collect();
    assert!(!plans.is_empty(), "{statements:?}");
    plans
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = diesel::sql_types::Text)]
    detail: String,
}

/// Returns the generic plan: PostgreSQL must not choose to scan a small table.
fn plan(conn: &mut AnyConnection, statement: &str) -> Vec<String> {
    match conn {
        AnyConnection::Postgres(pg) => {
            let parameters = statement.matches('$').count();
            let nulls = vec!["NULL"; parameters].join(", ");
            pg.transaction(|pg| {
                for set_up in [
                    "SET LOCAL enable_seqscan = off",
                    "SET LOCAL enable_bitmapscan = off",
                    "SET LOCAL plan_cache_mode = force_generic_plan",
                    &format!("PREPARE page AS {statement}"),
                ] {
                    diesel::sql_query(set_up).execute(pg)?;
                }
                let explain = diesel::sql_query(format!("EXPLAIN EXECUTE page ({nulls})"));
                let lines: Vec<PgLine> = explain.load(pg)?;
                diesel::sql_query("DEALLOCATE page").execute(pg)?;
                QueryResult::Ok(lines.into_iter().map(|line| line.detail.trim().to_owned()).collect())
            })
            .unwrap()
        }
        AnyConnection::Sqlite(sqlite) => {
            let explain = diesel::sql_query(format!("EXPLAIN QUERY PLAN {statement}"));
            let lines: Vec<Line> = explain.load(sqlite).unwrap();
            lines.into_iter().map(|line| line.detail).collect()
        }
    }
}

#[derive(QueryableByName)]
struct PgLine {
    #[diesel(sql_type = diesel::sql_types::Text, column_name = "QUERY PLAN")]
    detail: String,
}
