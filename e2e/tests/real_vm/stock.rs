//! A stock image, which the startup script makes a runner of.

use std::{fs, future::ready, sync::Arc, sync::Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    http::StatusCode,
    routing::{get, put},
};
use bytes::Bytes;
use miglet_e2e::{
    server::Server,
    vm::{Package, StockImage, available},
};

use crate::scene::Result;

const PACKAGE: &str = "/miglet.deb";

/// The metadata server of an instance whose template names this hash, and the place the package is at.
struct Cloud {
    server: Server,
    /// What became of the guest attribute.
    status: Arc<Mutex<String>>,
}

impl Cloud {
    async fn serve(package: Bytes, sha256: Option<String>) -> Result<Self> {
        let status = Arc::new(Mutex::new(String::new()));
        let told = status.clone();
        let own = Arc::new(Mutex::new(String::new()));
        let url = own.clone();
        let attribute = "/computeMetadata/v1/instance/attributes";
        let router = Router::new()
            .route(PACKAGE, get(move || ready(package.clone())))
            .route(&format!("{attribute}/miglet-package"), get(move || ready(url.lock().unwrap().clone())))
            .route(
                &format!("{attribute}/miglet-package-sha256"),
                get(move || ready(sha256.clone().ok_or(StatusCode::NOT_FOUND))),
            )
            .route(
                "/computeMetadata/v1/instance/guest-attributes/miglet/status",
                put(move |text: String| {
                    *told.lock().unwrap() = text;
                    ready(())
                }),
            );
        let server = Server::start(router).await?;
        *own.lock().unwrap() = format!("http://{}{PACKAGE}", server.address());
        Ok(Self { server, status })
    }

    /// How the script ended, what it said, and what it told.
    async fn boot(&self, image: &Arc<StockImage>) -> Result<(bool, String, String)> {
        let (image, address) = (image.clone(), self.server.address());
        let ended = tokio::task::spawn_blocking(move || image.boot(address)).await?;
        let (ok, said) = ended.map_or_else(|error| (false, error.to_string()), |said| (true, said));
        Ok((ok, said, self.status.lock().unwrap().clone()))
    }

    fn fetched(&self) -> usize {
        self.server.traffic.count(|exchange| exchange.path == PACKAGE)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_image_gets_the_agent_at_its_first_boot_and_no_other_package() -> Result {
    if !available()? {
        return Ok(());
    }
    let making = || -> Result<_> { Ok((fs::read(Package::obtain()?.deb)?, StockImage::obtain()?)) };
    let (package, image) = tokio::task::spawn_blocking(making).await??;
    let (package, image) = (Bytes::from(package), Arc::new(image));
    let hash = digest(&SHA256, &package).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();

    let (ok, said, told) = Cloud::serve(package.clone(), None).await?.boot(&image).await?;
    assert!(!ok && told.contains("miglet-package-sha256"), "{said}\n{told}");
    let (ok, said, told) = Cloud::serve(package.clone(), Some("0".repeat(64))).await?.boot(&image).await?;
    assert!(!ok && told.contains(&hash) && told.contains("miglet-package-sha256"), "{said}\n{told}");
    assert!(!image.has("/usr/bin/miglet"), "{said}");

    let cloud = Cloud::serve(package, Some(hash)).await?;
    let (ok, said, told) = cloud.boot(&image).await?;
    assert!(ok && told.is_empty(), "{said}\n{told}");
    for path in ["/usr/bin/miglet", "/etc/systemd/system/multi-user.target.wants/miglet.service", "/home/runner"] {
        assert!(image.has(path), "{path}: {said}");
    }
    let (ok, said, _) = cloud.boot(&image).await?;
    assert!(ok, "{said}");
    assert_eq!(cloud.fetched(), 1, "a later boot finds the agent there");
    Ok(())
}
