//! Query parameters: parsing them, pages, and selected fields.

pub(crate) mod paging;
pub(crate) mod params;
pub(crate) mod selection;
