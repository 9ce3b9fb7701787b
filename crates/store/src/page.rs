//! Pages of lists that are ordered by `(created_at, id)`.
//!
//! A page begins behind a position rather than after a number of rows, so that the last page costs no more than the
//! first, and rows that come and go meanwhile shift nothing.

use contracts::Timestamp;

use crate::columns::{Key, Time};

/// In which order a list is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortOrder {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// Where a row stands in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Its `created_at`.
    pub created_at: Timestamp,
    /// Its id, which decides between rows of one moment.
    pub id: uuid::Uuid,
}

/// Which page of a list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The most rows.
    pub limit: usize,
    /// How they are ordered.
    pub order: SortOrder,
    /// Behind which row it begins; at the beginning if none.
    pub from: Option<Position>,
    /// Whether it is the page that ends before `from` instead.
    pub backwards: bool,
    /// The earliest `created_at`.
    pub created_after: Option<Timestamp>,
    /// The first `created_at` that is too late.
    pub created_before: Option<Timestamp>,
}

/// The rows of a page, in the order wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<T> {
    /// The rows with their positions.
    pub rows: Vec<(Position, T)>,
    /// Whether there are more in the direction in which was read.
    pub more: bool,
}

impl PageRequest {
    /// Whether rows are read in descending order.
    pub(crate) fn reads_descending(&self) -> bool {
        (self.order == SortOrder::Descending) != self.backwards
    }

    /// How many rows to read to know whether there are more than wanted.
    pub(crate) fn reads(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// Of what was read for each range of the index, in reading order: the page.
    pub(crate) fn gather(&self, mut found: Vec<Position>) -> (Vec<Position>, bool) {
        found.sort_unstable();
        if self.reads_descending() {
            found.reverse();
        }
        let more = found.len() > self.limit;
        found.truncate(self.limit);
        if self.backwards {
            found.reverse();
        }
        (found, more)
    }
}

pub(crate) fn position((created_at, id): (Time, Key)) -> Position {
    Position { created_at: created_at.into(), id: id.0 }
}

/// Narrows a boxed query of a table to the rows that a [`PageRequest`] reads, and orders it.
macro_rules! paged {
    ($query:expr, $table:ident, $request:expr) => {{
        use $crate::columns::{Key, Time};
        let (mut query, request): (_, &$crate::page::PageRequest) = ($query, $request);
        if let Some(after) = request.created_after {
            query = query.filter($table::created_at.ge(Time::from(after)));
        }
        if let Some(before) = request.created_before {
            query = query.filter($table::created_at.lt(Time::from(before)));
        }
        if let Some(from) = request.from {
            let (moment, id) = (Time::from(from.created_at), Key(from.id));
            // The first condition says nothing new; it is what the range of the index is made of.
            query = if request.reads_descending() {
                let behind = $table::created_at.lt(moment).or($table::id.lt(id));
                query.filter($table::created_at.le(moment)).filter(behind)
            } else {
                let behind = $table::created_at.gt(moment).or($table::id.gt(id));
                query.filter($table::created_at.ge(moment)).filter(behind)
            };
        }
        query = if request.reads_descending() {
            query.order_by(($table::created_at.desc(), $table::id.desc()))
        } else {
            query.order_by(($table::created_at.asc(), $table::id.asc()))
        };
        query.limit(request.reads())
    }};
}
pub(crate) use paged;

/// Puts rows that were found by their ids into the order of their positions.
pub(crate) fn in_order<T>(
    positions: Vec<Position>,
    rows: Vec<T>,
    id: impl Fn(&T) -> uuid::Uuid,
) -> Vec<(Position, T)> {
    let mut by_id: std::collections::HashMap<_, _> = rows.into_iter().map(|row| (id(&row), row)).collect();
    positions.into_iter().filter_map(|at| Some((at, by_id.remove(&at.id)?))).collect()
}
