//! Descriptions as `kubectl explain` needs them.
//!
//! kubectl keeps the line breaks it finds and wraps at its own width besides: a source file's line breaks would leave
//! every other line half empty. Empty lines stay: they part paragraphs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray};

/// Makes one line of each paragraph of each description.
pub(super) fn fold(schema: &mut JSONSchemaProps) {
    if let Some(text) = &mut schema.description {
        *text = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(fold);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        fold(items);
    }
}
