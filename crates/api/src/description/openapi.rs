//! The OpenAPI 3.1 description of the API, generated from the table of calls, and its documentation page.

use std::sync::Arc;

use actix_web::http::header::{CONTENT_SECURITY_POLICY, ContentType, LOCATION};
use actix_web::web::{Bytes, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use contracts::ErrorCode;
use serde_json::{Map, Value, json};

use crate::call::CallResult;
use crate::description::operation::Operation;
use crate::error::ApiError;
use crate::query::params::no_query;

/// Allows only resources of this server, so that the page works offline and makes no outside requests.
const OFFLINE: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:";

/// The serialized document.
pub(crate) struct Description(Bytes);

impl Description {
    /// Describes the calls of `table`.
    pub(crate) fn of(table: &[Operation]) -> Description {
        Description(document(table).to_string().into())
    }
}

fn document(table: &[Operation]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for operation in table {
        let item = paths.entry(operation.path).or_insert_with(|| json!({}));
        item[operation.method.as_str().to_lowercase()] = operation.describe();
        for (name, schema) in &operation.schemas {
            schemas.insert(name.clone(), json!(schema));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Redial",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Signed callbacks when runs end: the record of their deliveries, and sending them again.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "rf_live_ or rf_svc_ and 64 hexadecimal digits",
                "description": "`redial token create` makes one. It belongs to one organization.",
            }},
        },
    })
}

/// `GET /openapi.json`
pub(crate) async fn show(request: HttpRequest, description: Data<Description>) -> CallResult {
    no_query(&request)?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(description.0.clone()))
}

/// `GET /docs`: redirects to `docs/`, since the page's links are relative.
pub(crate) async fn to_page() -> CallResult {
    Ok(HttpResponse::PermanentRedirect().insert_header((LOCATION, "docs/")).finish())
}

/// `GET /docs/{file}`: Swagger UI, embedded in the binary.
pub(crate) async fn page(file: Path<String>) -> CallResult {
    let config = Arc::new(utoipa_swagger_ui::Config::from("../openapi.json").validator_url("none"));
    let found = utoipa_swagger_ui::serve(&file, config).map_err(|error| ApiError::Page(error.to_string()))?;
    let file = found.ok_or(ErrorCode::NotFound)?;
    let mut response = HttpResponse::Ok();
    response.content_type(file.content_type).insert_header((CONTENT_SECURITY_POLICY, OFFLINE));
    Ok(response.body(file.bytes.into_owned()))
}
