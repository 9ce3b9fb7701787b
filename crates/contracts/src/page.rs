//! Pages of a list (contract section 3, "Pages").

use serde::Serialize;
use utoipa::ToSchema;

/// A page of a list. Its cursors are opaque; each is null where there is nothing to go to.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// In the order asked for.
    pub items: Vec<T>,
    /// The first page; null on it.
    #[schema(required)]
    pub first: Option<String>,
    /// The page after this one.
    #[schema(required)]
    pub next: Option<String>,
    /// The page before this one; to be passed with `from_prev=true`.
    #[schema(required)]
    pub previous: Option<String>,
}
