//! The table of an API's routes, from which both its router and its OpenAPI document are made.
//!
//! A route is declared once: method, path, handler, and a line for people. What it takes and gives is read
//! off the handler's own signature: the same types that parse requests and write answers make the schemas,
//! so that the document cannot say anything else than the code does.

use std::collections::BTreeMap;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::super::app::App;

mod says;

pub(crate) use says::{Handles, Operation};

/// Where the document keeps its schemas.
const SCHEMAS: &str = "/components/schemas";

/// Routes under one base, and, in a table that was made for it, what the document says of them.
pub(crate) struct Table {
    base: &'static str,
    is_documented: bool,
    router: Router<App>,
    paths: BTreeMap<&'static str, Map<String, Value>>,
    taken: SchemaGenerator,
    given: SchemaGenerator,
}

impl Table {
    /// An empty table of what is served under `base`, for its router: schemas are not made.
    pub(crate) fn new(base: &'static str) -> Self {
        Self { is_documented: false, ..Self::documented(base) }
    }

    /// An empty table of what is served under `base`, for its document.
    pub(crate) fn documented(base: &'static str) -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
            })
        };
        Self {
            base,
            is_documented: true,
            router: Router::new(),
            paths: BTreeMap::new(),
            taken: settings().for_deserialize().into_generator(),
            given: settings().for_serialize().into_generator(),
        }
    }

    /// A route that reads.
    pub(crate) fn get<H, T, A>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, App> + Handles<A>,
        T: 'static,
    {
        self.route(Method::GET, MethodFilter::GET, path, handler, summary)
    }

    /// A route that adds or does something.
    pub(crate) fn post<H, T, A>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, App> + Handles<A>,
        T: 'static,
    {
        self.route(Method::POST, MethodFilter::POST, path, handler, summary)
    }

    /// A route that replaces what is there.
    pub(crate) fn put<H, T, A>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, App> + Handles<A>,
        T: 'static,
    {
        self.route(Method::PUT, MethodFilter::PUT, path, handler, summary)
    }

    /// A route that removes what is there.
    pub(crate) fn delete<H, T, A>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, App> + Handles<A>,
        T: 'static,
    {
        self.route(Method::DELETE, MethodFilter::DELETE, path, handler, summary)
    }

    fn route<H, T, A>(
        mut self,
        method: Method,
        filter: MethodFilter,
        path: &'static str,
        handler: H,
        summary: &'static str,
    ) -> Self
    where
        H: Handler<T, App> + Handles<A>,
        T: 'static,
    {
        if self.is_documented {
            let mut operation = Operation::new(path, summary, &method, &mut self.taken, &mut self.given);
            H::describe(&mut operation);
            let value = operation.finish();
            self.paths.entry(path).or_default().insert(method.as_str().to_ascii_lowercase(), value);
        }
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    /// The router of all routes.
    pub(crate) fn router(self) -> Router<App> {
        self.router
    }

    /// The OpenAPI document (OpenAPI 3.1.0) of all routes of a documented table.
    pub(crate) fn document(mut self) -> Value {
        let mut schemas = self.taken.take_definitions(true);
        // A type that is both taken and given has one schema; the test of the document holds it to that.
        schemas.extend(self.given.take_definitions(true));
        schemas.insert("Problem".to_owned(), says::problem_schema());
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Maillage",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "The queue of examinations of a mesh of reading centres. What DICOMweb has words for is there, under /dicom-web.",
                "license": { "name": env!("CARGO_PKG_LICENSE") },
            },
            "servers": [{ "url": self.base }],
            "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
            "paths": self.paths,
            "components": { "schemas": schemas },
        });
        drop_null_defaults(&mut document);
        document
    }

    /// The names of types that are taken in one form and given in another: two schemas under one name.
    #[cfg(test)]
    pub(crate) fn contradictions(&mut self) -> Vec<String> {
        let (taken, given) = (self.taken.definitions(), self.given.definitions());
        let differs = |name: &&String| given.get(*name).is_some_and(|schema| Some(schema) != taken.get(*name));
        taken.keys().filter(differs).cloned().collect()
    }
}

/// An optional member's default is its absence. The generator says null, which a text is not.
fn drop_null_defaults(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, member| name != "default" || !member.is_null());
            members.values_mut().for_each(drop_null_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null_defaults),
        _ => {}
    }
}
