//! A call of the API: one definition for its route and its description.

use actix_web::Route;
use actix_web::http::Method;
use contracts::{ErrorBody, ErrorCode, ErrorType, FieldError, Page, Scope};
use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::query::selection::{Item, Selected};

/// A call with its route and its description (OpenAPI 3.1, "Operation Object").
pub(crate) struct Operation {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) route: Route,
    scope: Option<Scope>,
    id: &'static str,
    summary: &'static str,
    query: Vec<Value>,
    body: Option<Value>,
    responses: Vec<(u16, Value)>,
    errors: Vec<ErrorCode>,
    /// Named schemas that the description refers to.
    pub(crate) schemas: Vec<(String, RefOr<Schema>)>,
}

impl Operation {
    /// Creates a call that needs `scope`, or no token if `None`.
    pub(crate) fn new(method: Method, path: &'static str, scope: Option<Scope>, route: Route) -> Operation {
        let mut errors = vec![ErrorCode::ValidationError];
        if scope.is_some() {
            use ErrorCode::*;
            errors.extend([Unauthorized, PermissionDenied, OrganizationMembershipRequired]);
            errors.extend([PayloadTooLarge, RateLimited, InternalError, ServiceUnavailable]);
        }
        if method == Method::POST {
            errors.push(ErrorCode::Conflict); // an idempotency key used for another request
        }
        let (id, summary, body, query, responses) = ("", "", None, Vec::new(), Vec::new());
        let schemas = Vec::new();
        Operation { method, path, route, scope, id, summary, query, body, responses, errors, schemas }
            .with_schema::<ErrorBody>()
    }

    /// Sets the `operationId`, and the summary in one sentence.
    pub(crate) fn named(self, id: &'static str, summary: &'static str) -> Operation {
        Operation { id, summary, ..self }
    }

    /// Sets the query parameters.
    pub(crate) fn query(self, query: Vec<Value>) -> Operation {
        Operation { query, ..self }
    }

    /// Sets the JSON body.
    pub(crate) fn body(mut self, required: bool, schema: &Value, example: &Value) -> Operation {
        self.errors.push(ErrorCode::UnsupportedMediaType);
        let content = json!({"application/json": {"schema": schema, "example": example}});
        Operation { body: Some(json!({"required": required, "content": content})), ..self }
    }

    /// Adds a response with a `T`.
    pub(crate) fn response<T: ToSchema>(self, status: u16, description: &str, example: &Value) -> Operation {
        self.with_schema::<T>().add_response(status, description, &reference(&T::name()), example)
    }

    /// Adds a response with an array of `T`.
    pub(crate) fn response_list<T: ToSchema>(
        self,
        status: u16,
        description: &str,
        example: &Value,
    ) -> Operation {
        let schema = json!({"type": "array", "items": reference(&T::name())});
        self.with_schema::<T>().add_response(status, description, &schema, &json!([example]))
    }

    /// Adds a response with a page of `T`, whose keys can be selected.
    pub(crate) fn response_page<T: Item + 'static>(self, description: &str, example: &Value) -> Operation {
        let mut this = self.with_schema::<Selected<'_, T>>();
        let name = format!("{}Page", T::name()); // utoipa gives every page the same name
        this.schemas.push((name.clone(), Page::<Selected<'_, T>>::schema()));
        let example: Page<&Value> = Page { items: vec![example], first: None, next: None, previous: None };
        this.add_response(200, description, &reference(&name), &json!(example))
    }

    fn with_schema<T: ToSchema>(mut self) -> Operation {
        T::schemas(&mut self.schemas);
        self.schemas.push((T::name().into(), T::schema()));
        self
    }

    fn add_response(mut self, status: u16, description: &str, schema: &Value, example: &Value) -> Operation {
        let content = json!({"application/json": {"schema": schema, "example": example}});
        self.responses.push((status, describe_response(description, content, [])));
        self
    }

    /// Adds a response without a body.
    pub(crate) fn empty_response(mut self, status: u16, description: &str) -> Operation {
        self.responses.push((status, describe_response(description, Value::Null, [])));
        self
    }

    /// Adds an optional header to the successful responses added so far.
    pub(crate) fn with_header(mut self, name: &str, description: &str) -> Operation {
        for (_, answer) in &mut self.responses {
            answer["headers"][name] = json!({"schema": {"type": "string"}, "description": description});
        }
        self
    }

    /// Adds errors specific to this call.
    pub(crate) fn errors(mut self, errors: &[ErrorCode]) -> Operation {
        self.errors.extend(errors);
        self
    }

    /// Returns the Operation Object.
    pub(crate) fn describe(&self) -> Value {
        let mut answers: Map<String, Value> =
            self.responses.iter().map(|(status, answer)| (status.to_string(), answer.clone())).collect();
        let mut errors = self.errors.clone();
        errors.sort_by_key(|code| code.status());
        for same_status in errors.chunk_by(|a, b| a.status() == b.status()) {
            answers.insert(same_status[0].status().to_string(), error_response(same_status));
        }
        let mut described = json!({
            "operationId": self.id,
            "summary": self.summary,
            "tags": [self.path.trim_start_matches("/v1/").split('/').next()],
            "parameters": self.parameters(),
            "responses": answers,
            "security": [],
        });
        if let Some(scope) = self.scope {
            described["security"] = json!([{"bearer": [scope]}]);
            described["description"] = json!(format!("Needs the scope `{scope}`."));
        }
        if let Some(body) = &self.body {
            described["requestBody"] = body.clone();
        }
        described
    }

    fn parameters(&self) -> Vec<Value> {
        let uuid = json!({"type": "string", "format": "uuid", "minLength": 36, "maxLength": 36});
        let in_path = self.path.split('/').filter_map(|step| step.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": uuid.clone()}))
            .collect();
        parameters.extend(self.query.iter().cloned());
        let mut header = |name, schema, description| {
            let in_header =
                json!({"name": name, "in": "header", "schema": schema, "description": description});
            parameters.push(in_header);
        };
        if self.scope.is_some() {
            header(
                "X-Organization-Id",
                uuid,
                "Must be the token's organization; otherwise the response is 403.",
            );
        }
        if self.method == Method::POST {
            let schema = json!({"type": "string", "pattern": "^[!-~]{1,255}$"});
            header(
                "Idempotency-Key",
                schema,
                "Identifies the request. Repeating it with the same key within 24 hours returns the first response's content.",
            );
        }
        let taken =
            "Used as the request id if it matches `[A-Za-z0-9._-]{1,128}`; otherwise one is generated.";
        header("X-Request-Id", json!({"type": "string"}), taken);
        parameters
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn describe_response<const N: usize>(
    description: &str,
    content: Value,
    headers: [(&str, Value); N],
) -> Value {
    let mut all = json!({"X-Request-Id": {"schema": {"type": "string"}, "required": true}});
    for (name, schema) in headers {
        all[name] = json!({"schema": schema, "required": true});
    }
    let mut answer = json!({"description": description, "headers": all});
    if !content.is_null() {
        answer["content"] = content;
    }
    answer
}

/// Describes the response for error codes that share a status.
fn error_response(codes: &[ErrorCode]) -> Value {
    let examples: Map<String, Value> = codes
        .iter()
        .map(|code| {
            let errors = (*code == ErrorCode::ValidationError).then(|| {
                vec![FieldError::new(
                    &["query", "colour"],
                    ErrorType::ExtraForbidden,
                    "unknown query parameter",
                )]
            });
            let body = ErrorBody { code: *code, message: code.message().to_owned(), errors };
            (<&str>::from(code).to_owned(), json!({"value": body}))
        })
        .collect();
    let description = codes.iter().map(|code| code.message()).collect::<Vec<_>>().join(", or ");
    let content =
        json!({"application/json": {"schema": reference(&ErrorBody::name()), "examples": examples}});
    match codes[0] {
        ErrorCode::Unauthorized => describe_response(
            &description,
            content,
            [("WWW-Authenticate", json!({"type": "string", "const": "Bearer"}))],
        ),
        ErrorCode::RateLimited | ErrorCode::ServiceUnavailable => {
            let seconds = json!({"type": "integer", "minimum": 1});
            describe_response(&description, content, [("Retry-After", seconds)])
        }
        _ => describe_response(&description, content, []),
    }
}
