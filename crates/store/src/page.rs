//! Pages of lists ordered by `(created_at, id)`.
//!
//! A page starts after a position, not after a number of rows. So the last page costs no more than the first,
//! and rows inserted or deleted meanwhile do not shift the pages.

use std::collections::HashMap;

use contracts::Timestamp;
use diesel::backend::Backend;
use diesel::expression::{AppearsOnTable, Expression, ValidGrouping, is_aggregate};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::{Binary, Bool, HasSqlType, Nullable, Text};

use crate::columns::{DbId, DbTime, Id, Moment};

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortOrder {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// The position of a row in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The row's `created_at`.
    pub created_at: Timestamp,
    /// The row's id, which orders rows with the same `created_at`.
    pub id: uuid::Uuid,
}

/// Selects one page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Maximum number of rows.
    pub limit: usize,
    /// The order of the rows.
    pub order: SortOrder,
    /// The page starts after this row; `None` means at the beginning of the list.
    pub from: Option<Position>,
    /// Whether to return the page that ends before `from` instead.
    pub backwards: bool,
    /// Lower bound of `created_at`, inclusive.
    pub created_after: Option<Timestamp>,
    /// Upper bound of `created_at`, exclusive.
    pub created_before: Option<Timestamp>,
    /// Maximum stored bytes of the shown parts of the rows. A row that would exceed it belongs to the next
    /// page.
    pub max_bytes: usize,
    /// Whether to return the first row regardless of its size.
    pub never_empty: bool,
}

/// The rows of a page, in the requested order.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<T> {
    /// The rows with their positions.
    pub rows: Vec<(Position, T)>,
    /// Whether there are more rows in reading direction.
    pub more: bool,
    /// Whether the page ended early because of `max_bytes`.
    pub is_cut: bool,
}

/// Bytes counted for a row in addition to its payload and similar parts.
const ROW_BYTES: i64 = 512;

impl PageRequest {
    /// The whole list, newest first.
    pub const NEWEST: PageRequest = PageRequest {
        limit: usize::MAX,
        order: SortOrder::Descending,
        from: None,
        backwards: false,
        created_after: None,
        created_before: None,
        max_bytes: usize::MAX,
        never_empty: true,
    };

    /// Whether rows are read in descending order.
    pub(crate) fn reads_descending(&self) -> bool {
        (self.order == SortOrder::Descending) != self.backwards
    }

    /// Returns how many rows to read to know whether there are more than `limit`.
    pub(crate) fn reads(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// Returns the range to read: the earliest `created_at`, the exclusive upper bound, and the position to
    /// start after. If two bounds apply to the same side, only the tighter one is returned, because the
    /// database may enter the index at either of them.
    pub(crate) fn bounds(&self) -> (Option<Timestamp>, Option<Timestamp>, Option<Position>) {
        let (after, before) = (self.created_after, self.created_before);
        match self.from {
            Some(from) if self.reads_descending() => match before {
                Some(before) if before <= from.created_at => (after, Some(before), None),
                _ => (after, None, Some(from)),
            },
            Some(from) => match after {
                Some(after) if after > from.created_at => (Some(after), before, None),
                _ => (None, before, Some(from)),
            },
            None => (after, before, None),
        }
    }

    /// Merges the positions of all index ranges into one page, in reading order.
    pub(crate) fn gather(&self, mut found: Vec<Position>) -> PagePositions {
        found.sort_unstable();
        if self.reads_descending() {
            found.reverse();
        }
        let more = found.len() > self.limit;
        found.truncate(self.limit);
        PagePositions { positions: found, more, is_cut: false }
    }
}

/// The positions of a page, in reading order.
pub(crate) struct PagePositions {
    pub(crate) positions: Vec<Position>,
    more: bool,
    is_cut: bool,
}

impl PagePositions {
    /// Returns the ids of the rows.
    pub(crate) fn ids(&self) -> Vec<DbId> {
        self.positions.iter().map(|at| DbId(at.id)).collect()
    }

    /// Drops the rows that would exceed `max_bytes`.
    pub(crate) fn cut(&mut self, request: &PageRequest, bytes: &HashMap<DbId, i64>) {
        let (mut left, is_first) =
            (i64::try_from(request.max_bytes).unwrap_or(i64::MAX), request.never_empty);
        let mut fits = |(place, at): (usize, &Position)| {
            left =
                left.saturating_sub(bytes.get(&DbId(at.id)).copied().unwrap_or(0).saturating_add(ROW_BYTES));
            left >= 0 || (is_first && place == 0)
        };
        let count = self.positions.iter().enumerate().map_while(|row| fits(row).then_some(())).count();
        self.is_cut = count < self.positions.len();
        self.more |= self.is_cut;
        self.positions.truncate(count);
    }

    /// Builds the page from rows that were loaded by their ids.
    pub(crate) fn page<T>(
        mut self,
        request: &PageRequest,
        rows: Vec<T>,
        id: impl Fn(&T) -> uuid::Uuid,
    ) -> Rows<T> {
        if request.backwards {
            self.positions.reverse();
        }
        let mut by_id: HashMap<_, _> = rows.into_iter().map(|row| (id(&row), row)).collect();
        let rows = self.positions.into_iter().filter_map(|at| Some((at, by_id.remove(&at.id)?))).collect();
        Rows { rows, more: self.more, is_cut: self.is_cut }
    }
}

diesel::define_sql_function! {
    /// The size of a text in bytes. PostgreSQL does not read a long value for it.
    #[sql_name = "octet_length"]
    fn text_bytes(text: Nullable<Text>) -> Nullable<Integer>;
}

diesel::define_sql_function! {
    /// The size of a blob in bytes.
    #[sql_name = "octet_length"]
    fn blob_bytes(blob: Binary) -> Integer;
}

impl Position {
    pub(crate) fn columns(&self) -> (DbTime, DbId) {
        (self.created_at.into(), DbId(self.id))
    }
}

pub(crate) fn position((created_at, id): (DbTime, DbId)) -> Position {
    Position { created_at: created_at.into(), id: id.0 }
}

/// Compares a row's `created_at` and `id` with a position. Unlike conditions on each column, a row value is
/// one bound of an index over both, so rows with the same `created_at` are not read and discarded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AfterPosition<C, I> {
    pub(crate) columns: (C, I),
    pub(crate) position: (DbTime, DbId),
    pub(crate) descending: bool,
}

impl<C, I> Expression for AfterPosition<C, I> {
    type SqlType = Bool;
}

impl<C, I, QS> AppearsOnTable<QS> for AfterPosition<C, I>
where
    C: AppearsOnTable<QS>,
    I: AppearsOnTable<QS>,
{
}

impl<C, I> ValidGrouping<()> for AfterPosition<C, I> {
    type IsAggregate = is_aggregate::No;
}

/// The type does not identify the query: `descending` changes its text.
impl<C, I> QueryId for AfterPosition<C, I> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<C, I, DB> QueryFragment<DB> for AfterPosition<C, I>
where
    DB: Backend + HasSqlType<Moment> + HasSqlType<Id>,
    C: QueryFragment<DB>,
    I: QueryFragment<DB>,
    DbTime: ToSql<Moment, DB>,
    DbId: ToSql<Id, DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql("(");
        self.columns.0.walk_ast(out.reborrow())?;
        out.push_sql(", ");
        self.columns.1.walk_ast(out.reborrow())?;
        out.push_sql(if self.descending { ") < (" } else { ") > (" });
        out.push_bind_param::<Moment, _>(&self.position.0)?;
        out.push_sql(", ");
        out.push_bind_param::<Id, _>(&self.position.1)?;
        out.push_sql(")");
        Ok(())
    }
}

/// Restricts a boxed query of a table to the rows that a [`PageRequest`] reads, and orders it.
macro_rules! paged {
    ($query:expr, $table:ident, $request:expr) => {{
        use $crate::columns::DbTime;
        let (mut query, request): (_, &$crate::page::PageRequest) = ($query, $request);
        let (after, before, from) = request.bounds();
        if let Some(after) = after {
            query = query.filter($table::created_at.ge(DbTime::from(after)));
        }
        if let Some(before) = before {
            query = query.filter($table::created_at.lt(DbTime::from(before)));
        }
        if let Some(from) = from {
            query = query.filter($crate::page::AfterPosition {
                columns: ($table::created_at, $table::id),
                position: from.columns(),
                descending: request.reads_descending(),
            });
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
