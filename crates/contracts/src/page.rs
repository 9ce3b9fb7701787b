//! Pages of a list (contract section 3, "Pages").

use serde::Serialize;
use utoipa::ToSchema;

/// A page of a list. Cursors are opaque; a cursor is null if its page does not exist.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items in the requested order.
    pub items: Vec<T>,
    /// The cursor of the first page; null on the first page itself.
    #[schema(required)]
    pub first: Option<String>,
    /// The cursor of the next page.
    #[schema(required)]
    pub next: Option<String>,
    /// The cursor of the previous page, to be passed with `from_prev=true`.
    #[schema(required)]
    pub previous: Option<String>,
}
