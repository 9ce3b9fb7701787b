//! Pages of lists (contract section 3, "Pages"): query parameters and cursors.

use actix_web::HttpResponse;
use actix_web::body::BodyStream;
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contracts::{ErrorType, Page, Timestamp};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{PageRequest, Position, Rows, SortOrder};
use uuid::Uuid;

use crate::call::{self, Call, CallResult};
use crate::error::ApiError;
use crate::query::params::{Fault, Query, describe};
use crate::query::selection::{self, Item, Selected, Selection};

pub(crate) const MAX_LIMIT: usize = 500;
const DEFAULT_LIMIT: usize = 50;

/// Where a page starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// At the start of the list.
    Start,
    /// Next to this row.
    At(Position),
}

/// Describes the query parameters that select a page of `T` and the keys to show.
pub(crate) fn parameters<T: Item>() -> Vec<Value> {
    let limit = json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT});
    let sort_by = json!({"type": "string", "enum": ["created_at:desc", "created_at:asc"], "default": "created_at:desc"});
    vec![
        describe("limit", &limit, "Maximum items per page."),
        describe(
            "pq",
            &json!({"type": "string"}),
            "The cursor of the page to return: another page's `first`, `next` or `previous`.",
        ),
        describe(
            "from_prev",
            &json!({"type": "boolean", "default": false}),
            "Must be true if `pq` is a `previous` cursor.",
        ),
        describe("sort_by", &sort_by, "Sort order of the items."),
        selection::parameter::<T>(),
    ]
}

/// Describes the query parameters that filter by `created_at`.
pub(crate) fn moment_parameters() -> [Value; 2] {
    let moment = json!({"type": "string", "format": "date-time"});
    [
        describe("created_after", &moment, "Only items created at or after this time."),
        describe("created_before", &moment, "Only items created before this time."),
    ]
}

/// Takes the parameters of [`parameters`] except the last, which is a [`Selection`].
pub(crate) fn page_of(query: &mut Query) -> PageRequest {
    let limit = query.take("limit", parse_limit).unwrap_or(DEFAULT_LIMIT);
    let order = query.take("sort_by", parse_order).unwrap_or(SortOrder::Descending);
    let backwards = query.flag("from_prev");
    let cursor = query.take("pq", |text| match decode(text, order) {
        Some(Cursor::Start) if backwards => {
            Err((ErrorType::CursorInvalid, "nothing comes before the first page".into()))
        }
        Some(cursor) => Ok(cursor),
        None => Err((ErrorType::CursorInvalid, "expected a cursor of a page in this order".into())),
    });
    let from = match cursor {
        Some(Cursor::At(position)) => Some(position),
        _ => None,
    };
    PageRequest { limit, order, from, backwards, ..PageRequest::NEWEST }
}

/// Limits the request to the maximum bytes and, in ascending order, to rows older than any uncommitted one.
pub(crate) async fn bounded(call: &Call, mut request: PageRequest) -> Result<PageRequest, ApiError> {
    let most = call.api.limits.page_bytes;
    (request.max_bytes, request.never_empty) = (most.min(call.max_bytes()), call.room.is_some());
    if request.order == SortOrder::Ascending && !request.backwards {
        let until = call.api.store.complete_until().await?;
        request.created_before = [request.created_before, until].into_iter().flatten().min();
    }
    Ok(request)
}

/// Returns the rows of a page, unless they are too large for a call without reserved memory.
pub(crate) fn roomy<T>(call: &Call, found: Rows<T>) -> Result<Rows<T>, ApiError> {
    // The driver's result, the rows, and the chunk being written.
    const COPIES: usize = 3;
    match found.is_cut && call.room.is_none() {
        true => Err(ApiError::NeedsRoom(COPIES * call.api.limits.page_bytes)),
        false => Ok(found),
    }
}

/// Responds with a page. A large page is written row by row as the client reads it.
pub(crate) fn answer<T: Serialize + 'static>(
    call: &Call,
    request: &PageRequest,
    found: Rows<T>,
    selection: Selection,
) -> CallResult {
    let found = roomy(call, found)?;
    let Some(room) = &call.room else {
        return call::json(StatusCode::OK, &page(request, found, &selection));
    };
    room.keep_only(call.api.limits.page_bytes); // the rows; the driver's copy has been dropped
    // The page's own keys, which enclose its items.
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
            tracing::error!(%error, "a response was cut off: a row can't be serialized");
        }
    });
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(BodyStream::new(stream::iter(body))))
}

/// Returns the cursor of the next page, for a list sorted newest first. `None` if there is no next page.
pub(crate) fn cursor_behind<T>(found: &Rows<T>) -> Option<String> {
    let (last, _) = found.rows.last().filter(|_| found.more)?;
    Some(encode(Cursor::At(*last), SortOrder::Descending))
}

/// Like [`page_of`], with the parameters of [`moment_parameters`].
pub(crate) fn page_in_time(query: &mut Query) -> PageRequest {
    PageRequest {
        created_after: query.moment("created_after"),
        created_before: query.moment("created_before"),
        ..page_of(query)
    }
}

/// Returns the page with its cursors.
fn page<'a, T>(request: &PageRequest, found: Rows<T>, selection: &'a Selection) -> Page<Selected<'a, T>> {
    let Page { first, next, previous, .. } = around(request, &found, Vec::<()>::new());
    let items = found.rows.into_iter().map(|(_, item)| selection.apply(item)).collect();
    Page { items, first, next, previous }
}

/// Returns a page of `items` with the cursors of `found`.
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
        Ok(Ok(0) | Err(_)) => Err((ErrorType::GreaterThanEqual, "expected 1 or more".into())),
        Ok(Ok(_)) => Err((ErrorType::LessThanEqual, format!("expected at most {MAX_LIMIT}"))),
        Err(_) => Err((ErrorType::IntParsing, "expected an integer".into())),
    }
}

fn parse_order(text: &str) -> Result<SortOrder, Fault> {
    match text {
        "created_at:asc" => Ok(SortOrder::Ascending),
        "created_at:desc" => Ok(SortOrder::Descending),
        _ => Err((ErrorType::Enum, "expected created_at:asc or created_at:desc".into())),
    }
}

/// Version of the cursor format. A cursor of another version is refused.
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;

/// Encodes version, order, kind, time, ID and checksum. Only the start position of the page is taken from a
/// cursor without further checks.
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
