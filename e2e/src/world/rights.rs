//! Gives an operator exactly the rights of `manifests/`, in namespaces of its own.

use serde_json::{Value, json};

use super::Trouble;
use crate::control_plane::ControlPlane;

/// The manifests' own namespace, replaced by the world's.
const SYSTEM: &str = "miglet-system";

/// Applies the playground's overlay with `system` for its namespace, and lets the operator read the Secrets of
/// `namespace`. Says what was made.
pub(super) async fn grant(plane: &ControlPlane, system: &str, namespace: &str) -> Result<Value, Trouble> {
    let overlay = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/overlays/playground");
    let rendered = plane.kubectl(&["kustomize", overlay]).await?;
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})];
    for document in rendered.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document)?;
        objects.extend(own(object, system));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = written(&list)?;
    let path = file.path().to_string_lossy();
    plane.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", &path]).await?;
    Ok(list)
}

/// Takes back what [`grant`] made, namespaces with all that is in them included.
pub(super) async fn revoke(plane: &ControlPlane, list: &Value) -> Result<(), Trouble> {
    let file = written(list)?;
    let path = file.path().to_string_lossy();
    plane.kubectl(&["delete", "--ignore-not-found", "--timeout=60s", "--filename", &path]).await?;
    Ok(())
}

fn written(list: &Value) -> Result<tempfile::NamedTempFile, Trouble> {
    let file = tempfile::NamedTempFile::with_suffix(".json")?;
    serde_json::to_writer(file.as_file(), list)?;
    Ok(file)
}

/// The object in this world's namespace; definitions are the whole plane's and there already.
fn own(object: Value, system: &str) -> Option<Value> {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if kind == "CustomResourceDefinition" {
        return None;
    }
    let text = object.to_string().replace(SYSTEM, system);
    let mut object: Value = serde_json::from_str(&text).ok()?;
    if kind == "ClusterRoleBinding" {
        let name = object.pointer_mut("/metadata/name")?;
        *name = json!(format!("{}-{system}", name.as_str()?));
    }
    Some(object)
}
