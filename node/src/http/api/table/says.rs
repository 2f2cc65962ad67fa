//! What a handler's signature says of its route.

use std::convert::Infallible;
use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use axum::response::sse::{Event, Sse};
use maillage_consensus::ids::ExamId;
use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde_json::{Map, Value, json};

use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery};
use crate::http::problem::Problem;
use crate::http::reading::Read;

/// One operation of the document, while its handler is looked at.
pub(crate) struct Operation<'t> {
    value: Map<String, Value>,
    path: &'static str,
    parameters: Vec<Value>,
    taken: &'t mut SchemaGenerator,
    given: &'t mut SchemaGenerator,
}

impl<'t> Operation<'t> {
    pub(super) fn new(
        path: &'static str,
        summary: &'static str,
        method: &Method,
        taken: &'t mut SchemaGenerator,
        given: &'t mut SchemaGenerator,
    ) -> Self {
        let mut id = method.as_str().to_ascii_lowercase();
        for word in path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
            id.push('_');
            id.push_str(word);
        }
        let mut value = Map::new();
        value.insert("operationId".to_owned(), json!(id));
        value.insert("summary".to_owned(), json!(summary));
        Self { value, path, parameters: Vec::new(), taken, given }
    }

    pub(super) fn finish(mut self) -> Value {
        if !self.parameters.is_empty() {
            self.value.insert("parameters".to_owned(), json!(self.parameters));
        }
        Value::Object(self.value)
    }

    fn parameter(&mut self, name: &str, place: &str, required: bool, schema: Value) {
        let parameter = json!({ "name": name, "in": place, "required": required, "schema": schema });
        self.parameters.push(parameter);
    }

    fn body(&mut self, media: &str, schema: Value) {
        let body = json!({ "required": true, "content": { media: { "schema": schema } } });
        self.value.insert("requestBody".to_owned(), body);
    }

    fn answer(&mut self, status: &str, content: Option<(&str, Value)>) {
        let mut answer = json!({ "description": "done" });
        if let Some((media, schema)) = content {
            answer["content"] = json!({ media: { "schema": schema } });
        }
        let responses = self.value.entry("responses").or_insert_with(|| json!({}));
        responses[status] = answer;
    }

    /// The names in the path's braces.
    fn names(&self) -> Vec<&'static str> {
        self.path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect()
    }
}

/// A handler whose arguments are `A`.
pub(crate) trait Handles<A> {
    /// Says what it takes and gives.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! handles {
    ($($argument:ident),*) => {
        impl<F, Fut, R, $($argument),*> Handles<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Fut,
            Fut: Future<Output = R>,
            R: Gives,
            $($argument: Takes,)*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($argument::say(operation);)*
                R::say(operation);
            }
        }
    };
}
handles!();
handles!(A1);
handles!(A1, A2);
handles!(A1, A2, A3);
handles!(A1, A2, A3, A4);
handles!(A1, A2, A3, A4, A5);

/// An argument of a handler.
pub(crate) trait Takes {
    /// Says what it takes from the request.
    fn say(operation: &mut Operation<'_>);
}

impl Takes for State<App> {
    fn say(_: &mut Operation<'_>) {}
}

impl Takes for HeaderMap {
    fn say(_: &mut Operation<'_>) {}
}

impl Takes for Body {
    /// The one route that takes a body of its own kind takes a DICOM file.
    fn say(operation: &mut Operation<'_>) {
        operation.body("application/dicom", json!({ "type": "string", "format": "binary" }));
    }
}

impl Takes for Idempotency {
    fn say(operation: &mut Operation<'_>) {
        let schema = json!({
            "type": "string", "format": "uuid",
            "description": "a repeat under the same key returns the first outcome and does nothing",
        });
        operation.parameter("Idempotency-Key", "header", false, schema);
    }
}

impl<T: JsonSchema> Takes for JsonBody<T> {
    fn say(operation: &mut Operation<'_>) {
        let schema = operation.taken.subschema_for::<T>().to_value();
        operation.body("application/json", schema);
    }
}

impl<T: JsonSchema> Takes for UrlQuery<T> {
    fn say(operation: &mut Operation<'_>) {
        let schema = T::json_schema(operation.taken).to_value();
        let required: Vec<&str> =
            schema["required"].as_array().map_or(Vec::new(), |names| names.iter().filter_map(Value::as_str).collect());
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            operation.parameter(name, "query", required.contains(&name.as_str()), schema.clone());
        }
    }
}

impl<T: PathParts> Takes for UrlPath<T> {
    fn say(operation: &mut Operation<'_>) {
        for (name, schema) in operation.names().into_iter().zip(T::schemas()) {
            operation.parameter(name, "path", true, schema);
        }
    }
}

/// What a path's braces hold.
pub(crate) trait PathParts {
    /// A schema for each, in order.
    fn schemas() -> Vec<Value>;
}

impl PathParts for ExamId {
    fn schemas() -> Vec<Value> {
        vec![json!({ "type": "integer", "minimum": 0, "description": "the exam's number" })]
    }
}

impl PathParts for (ExamId, u32) {
    fn schemas() -> Vec<Value> {
        let mut schemas = ExamId::schemas();
        schemas.push(json!({ "type": "integer", "minimum": 1, "description": "the remark's number within the exam" }));
        schemas
    }
}

impl PathParts for String {
    fn schemas() -> Vec<Value> {
        vec![json!({ "type": "string" })]
    }
}

/// What a handler returns.
pub(crate) trait Gives {
    /// Says what it answers.
    fn say(operation: &mut Operation<'_>);
}

impl<T: JsonSchema> Gives for Json<T> {
    fn say(operation: &mut Operation<'_>) {
        let schema = operation.given.subschema_for::<T>().to_value();
        operation.answer("200", Some(("application/json", schema)));
    }
}

impl<T: JsonSchema> Gives for (StatusCode, Json<T>) {
    fn say(operation: &mut Operation<'_>) {
        let schema = operation.given.subschema_for::<T>().to_value();
        operation.answer("2XX", Some(("application/json", schema)));
    }
}

impl<T: JsonSchema> Gives for Read<T> {
    fn say(operation: &mut Operation<'_>) {
        let schema = operation.given.subschema_for::<Self>().to_value();
        operation.answer("200", Some(("application/json", schema)));
    }
}

impl Gives for Response {
    fn say(operation: &mut Operation<'_>) {
        operation.answer("2XX", None);
    }
}

impl<S> Gives for Sse<S>
where
    S: futures::Stream<Item = Result<Event, Infallible>>,
{
    fn say(operation: &mut Operation<'_>) {
        operation.answer("200", Some(("text/event-stream", json!({ "type": "string" }))));
    }
}

impl<T: Gives> Gives for Result<T, Problem> {
    fn say(operation: &mut Operation<'_>) {
        T::say(operation);
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        operation.answer("default", Some(("application/problem+json", schema)));
        operation.value["responses"]["default"]["description"] = json!("not done");
    }
}

/// The schema of [`Problem`] (RFC 9457): a few members for all, further ones by `code`.
pub(super) fn problem_schema() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    json!({
        "type": "object",
        "description": "Problem details (RFC 9457); some codes have further members",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": text("urn:maillage:problem: and the code"),
            "title": text("what kind of problem, for people"),
            "status": { "type": "integer" },
            "detail": text("what happened, for people"),
            "code": text("what kind of problem, stable, for programs"),
        },
    })
}
