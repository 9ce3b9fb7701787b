//! Hand-written statements that diesel keeps prepared. It never keeps a `sql_query` or an `update` prepared.

use std::marker::PhantomData;

use diesel::backend::Backend;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::HasSqlType;

/// A statement with one `?` per bind, which yields rows of SQL type `Row`. The backend replaces each `?` with
/// its own placeholder, so one text can serve both engines. The text must not contain `?` for any other
/// purpose.
pub(crate) struct Prepared<'a, DB: Backend, Row = ()> {
    text: &'static str,
    binds: Vec<Box<dyn Bind<DB> + 'a>>,
    row: PhantomData<Row>,
}

trait Bind<DB: Backend> {
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, DB>) -> QueryResult<()>;
}

struct Bound<ST, V>(V, PhantomData<ST>);

impl<ST, V, DB> Bind<DB> for Bound<ST, V>
where
    DB: Backend + HasSqlType<ST>,
    V: ToSql<ST, DB>,
{
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_bind_param::<ST, V>(&self.0)
    }
}

pub(crate) fn prepared<'a, Row, DB: Backend>(text: &'static str) -> Prepared<'a, DB, Row> {
    Prepared { text, binds: Vec::new(), row: PhantomData }
}

impl<'a, DB: Backend, Row> Prepared<'a, DB, Row> {
    pub(crate) fn bind<ST: 'a, V>(mut self, value: V) -> Self
    where
        DB: HasSqlType<ST>,
        V: ToSql<ST, DB> + 'a,
    {
        self.binds.push(Box::new(Bound::<ST, V>(value, PhantomData)));
        self
    }
}

impl<DB: Backend, Row> QueryFragment<DB> for Prepared<'_, DB, Row> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        let mut binds = self.binds.iter();
        for (i, piece) in self.text.split('?').enumerate() {
            if i > 0 {
                binds.next().expect("a bind for every ?").push(&mut out)?;
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

/// The type does not identify the statement: diesel finds the prepared statement by its text.
impl<DB: Backend, Row> QueryId for Prepared<'_, DB, Row> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend, Row> Query for Prepared<'_, DB, Row> {
    type SqlType = Row;
}

impl<DB: Backend, Row, Conn: Connection<Backend = DB>> RunQueryDsl<Conn> for Prepared<'_, DB, Row> {}

/// Collects one column of a batch, for `unnest`.
pub(crate) fn column<'r, R, V>(rows: &'r [R], value: impl Fn(&'r R) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}
