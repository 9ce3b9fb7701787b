//! Pages of lists (contract section 3, "Pages"): their query parameters and their cursors.

use actix_web::HttpResponse;
use actix_web::body::BodyStream;
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contracts::{Page, Timestamp};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{PageRequest, Position, Rows, SortOrder};
use uuid::Uuid;

use crate::call::{self, Answer, Call};
use crate::error::ApiError;
use crate::operation::query;
use crate::params::{Fault, Query};
use crate::selection::{self, Item, Selected, Selection};

pub(crate) const MAX_LIMIT: usize = 500;
const DEFAULT_LIMIT: usize = 50;

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// At the list's beginning.
    Start,
    /// Next to that row.
    At(Position),
}

/// What the query may hold that says which page of `T` is wanted, and what of each.
pub(crate) fn parameters<T: Item>() -> Vec<Value> {
    let limit = json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT});
    let sort_by = json!({"type": "string", "enum": ["created_at:desc", "created_at:asc"], "default": "created_at:desc"});
    vec![
        query("limit", &limit, "The most items of the page."),
        query("pq", &json!({"type": "string"}), "A page's `first`, `next` or `previous`."),
        query(
            "from_prev",
            &json!({"type": "boolean", "default": false}),
            "Whether `pq` is a page's `previous`.",
        ),
        query("sort_by", &sort_by, "The order of the items."),
        selection::parameter::<T>(),
    ]
}

/// What the query may hold that says which moments are wanted.
pub(crate) fn moment_parameters() -> [Value; 2] {
    let moment = json!({"type": "string", "format": "date-time"});
    [
        query("created_after", &moment, "The earliest `created_at`."),
        query("created_before", &moment, "Only what was created before this moment."),
    ]
}

/// Takes the parameters of [`parameters`] but the last, which is a [`Selection`].
pub(crate) fn page_of(query: &mut Query) -> PageRequest {
    let limit = query.take("limit", parse_limit).unwrap_or(DEFAULT_LIMIT);
    let order = query.take("sort_by", parse_order).unwrap_or(SortOrder::Descending);
    let backwards = query.flag("from_prev");
    let cursor = query.take("pq", |text| match decode(text, order) {
        Some(Cursor::Start) if backwards => {
            Err(("cursor_invalid", "nothing comes before the first page".into()))
        }
        Some(cursor) => Ok(cursor),
        None => Err(("cursor_invalid", "expected a cursor of a page in this order".into())),
    });
    let from = match cursor {
        Some(Cursor::At(position)) => Some(position),
        _ => None,
    };
    PageRequest { limit, order, from, backwards, ..PageRequest::NEWEST }
}

/// The request within its bounds: of bytes and, in ascending order, of what may still be overtaken.
pub(crate) async fn bounded(call: &Call, mut request: PageRequest) -> Result<PageRequest, ApiError> {
    let most = call.api.limits.page_bytes;
    (request.max_bytes, request.never_empty) = (most.min(call.max_bytes()), call.room.is_some());
    if request.order == SortOrder::Ascending && !request.backwards {
        let until = call.api.store.complete_until().await?;
        request.created_before = [request.created_before, until].into_iter().flatten().min();
    }
    Ok(request)
}

/// The rows of a page, if they are not too large for a request without room.
pub(crate) fn roomy<T>(call: &Call, found: Rows<T>) -> Result<Rows<T>, ApiError> {
    // As the driver has them, as rows, and as the piece that is being written.
    const COPIES: usize = 3;
    match found.is_cut && call.room.is_none() {
        true => Err(ApiError::NeedsRoom(COPIES * call.api.limits.page_bytes)),
        false => Ok(found),
    }
}

/// Answers a page. A large one is written row by row, as the client takes it.
pub(crate) fn answer<T: Serialize + 'static>(
    call: &Call,
    request: &PageRequest,
    found: Rows<T>,
    selection: Selection,
) -> Answer {
    let found = roomy(call, found)?;
    let Some(room) = &call.room else {
        return call::json(StatusCode::OK, &page(request, found, &selection));
    };
    room.keep_only(call.api.limits.page_bytes); // the rows; the driver's copy of them is gone
    // The page's own keys stand around its items.
    let frame = serde_json::to_string(&around(request, &found, Vec::<()>::new()))?;
    let (head, tail) = frame.split_once("[]").unwrap_or((&frame, ""));
    let (head, tail) = (Bytes::from(format!("{head}[")), Bytes::from(format!("]{tail}")));
    let items = found.rows.into_iter().enumerate().map(move |(place, (_, item))| {
        let mut bytes = if place == 0 { Vec::new() } else { vec![b','] };
        serde_json::to_writer(&mut bytes, &selection.apply(item)).map(|()| Bytes::from(bytes))
    });
    let body = std::iter::once(Ok(head)).chain(items).chain(std::iter::once(Ok(tail)));
    let body = body.inspect(|piece: &Result<Bytes, serde_json::Error>| {
        if let Err(error) = piece {
            tracing::error!(%error, "an answer is cut off: a row can't be written");
        }
    });
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(BodyStream::new(stream::iter(body))))
}

/// Where the page behind these rows begins, for a list newest first.
pub(crate) fn cursor_behind<T>(found: &Rows<T>) -> Option<String> {
    let (last, _) = found.rows.last().filter(|_| found.more)?;
    Some(encode(Cursor::At(*last), SortOrder::Descending))
}

/// As [`page_of`], with the parameters of [`moment_parameters`].
pub(crate) fn page_in_time(query: &mut Query) -> PageRequest {
    PageRequest {
        created_after: query.moment("created_after"),
        created_before: query.moment("created_before"),
        ..page_of(query)
    }
}

/// The page with its cursors.
fn page<'a, T>(request: &PageRequest, found: Rows<T>, selection: &'a Selection) -> Page<Selected<'a, T>> {
    let Page { first, next, previous, .. } = around(request, &found, Vec::<()>::new());
    let items = found.rows.into_iter().map(|(_, item)| selection.apply(item)).collect();
    Page { items, first, next, previous }
}

/// A page of `items` with the cursors of `found`.
fn around<T, I>(request: &PageRequest, found: &Rows<T>, items: Vec<I>) -> Page<I> {
    let Rows { rows, more, .. } = found;
    let (is_not_first, is_not_last) =
        if request.backwards { (*more, request.from.is_some()) } else { (request.from.is_some(), *more) };
    let cursor = |row: Option<&(Position, T)>| row.map(|(at, _)| encode(Cursor::At(*at), request.order));
    Page {
        items,
        first: is_not_first.then(|| encode(Cursor::Start, request.order)),
        next: is_not_last.then(|| cursor(rows.last())).flatten(),
        previous: is_not_first.then(|| cursor(rows.first())).flatten(),
    }
}

fn parse_limit(text: &str) -> Result<usize, Fault> {
    match text.parse::<i64>().map(usize::try_from) {
        Ok(Ok(limit @ 1..=MAX_LIMIT)) => Ok(limit),
        Ok(Ok(0) | Err(_)) => Err(("greater_than_equal", "expected 1 or more".into())),
        Ok(Ok(_)) => Err(("less_than_equal", format!("expected at most {MAX_LIMIT}"))),
        Err(_) => Err(("int_parsing", "expected an integer".into())),
    }
}

fn parse_order(text: &str) -> Result<SortOrder, Fault> {
    match text {
        "created_at:asc" => Ok(SortOrder::Ascending),
        "created_at:desc" => Ok(SortOrder::Descending),
        _ => Err(("enum", "expected created_at:asc or created_at:desc".into())),
    }
}

/// Tells a cursor of another order, or of a later version, from one of ours.
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;

/// Version, order, kind, moment, id, checksum; nothing in it is taken on trust but where to begin.
fn encode(cursor: Cursor, order: SortOrder) -> String {
    let mut bytes = vec![VERSION, order as u8, matches!(cursor, Cursor::At(_)).into()];
    if let Cursor::At(Position { created_at, id }) = cursor {
        bytes.extend(created_at.as_micros().to_be_bytes());
        bytes.extend(id.as_bytes());
    }
    bytes.extend(checksum(&bytes));
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str, wanted: SortOrder) -> Option<Cursor> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM>()?;
    let ([VERSION, order, is_position], rest) = bytes.split_first_chunk::<3>()? else { return None };
    if *order != wanted as u8 || *sum != checksum(bytes) {
        return None;
    }
    match (is_position, rest.split_first_chunk::<8>()) {
        (0, None) if rest.is_empty() => Some(Cursor::Start),
        (1, Some((micros, id))) => {
            let created_at = Timestamp::from_micros(i64::from_be_bytes(*micros));
            Some(Cursor::At(Position { created_at, id: Uuid::from_slice(id).ok()? }))
        }
        _ => None,
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::new().chain_update(b"redial cursor").chain_update(bytes).finalize();
    std::array::from_fn(|i| digest[i])
}
