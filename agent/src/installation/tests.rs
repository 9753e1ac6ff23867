//! Installing from hostile and broken sources, over real HTTP on loopback.

use std::{
    collections::VecDeque,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Response, StatusCode, header},
};
use flate2::{Compression, write::GzEncoder};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::StreamExt;

use std::path::Path;

use super::*;

/// How the source answers its next request.
#[derive(Clone, Copy, Debug)]
enum Answers {
    Whole,
    /// The answer ends after so many bytes.
    Torn(usize),
    /// Without its length.
    Chunked,
    NotFound,
    /// Something else under the same name.
    Wrong,
    Redirect,
    /// Claims a length, sends nothing.
    Length(&'static str),
    /// Gives the whole file for a range it was not asked for.
    WrongRange,
}

#[derive(Clone)]
struct Source {
    archive: Arc<Vec<u8>>,
    script: Arc<Mutex<VecDeque<Answers>>>,
    /// The ranges that were asked for.
    ranges: Arc<Mutex<Vec<Option<String>>>>,
}

async fn answer(State(source): State<Source>, headers: HeaderMap) -> Response<Body> {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
    source.ranges.lock().unwrap().push(range.clone());
    let next = source.script.lock().unwrap().pop_front().unwrap_or(Answers::Whole);
    let from: usize =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let all = &source.archive;
    let respond = Response::builder();
    let response = match next {
        Answers::Whole if from > 0 => respond
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{}", all.len() - 1, all.len()))
            .body(all[from..].to_vec().into()),
        Answers::Whole => respond.body(all.to_vec().into()),
        Answers::Torn(at) => {
            let pieces = [Ok(all[..at].to_vec()), Err(std::io::Error::other("torn"))];
            // Pending in between: only then is the first piece sent before the connection breaks.
            let paused = tokio_stream::iter(pieces).then(|piece| async {
                tokio::task::yield_now().await;
                piece
            });
            let body = Body::from_stream(paused);
            respond.header(header::CONTENT_LENGTH, all.len()).body(body)
        }
        Answers::Chunked => {
            let pieces = [Ok::<_, std::io::Error>(all.to_vec())];
            respond.body(Body::from_stream(tokio_stream::iter(pieces)))
        }
        Answers::NotFound => respond.status(StatusCode::NOT_FOUND).body(Body::empty()),
        Answers::Wrong => respond.body("not the runner".into()),
        Answers::Redirect => {
            respond.status(StatusCode::FOUND).header(header::LOCATION, "/elsewhere").body(Body::empty())
        }
        Answers::Length(length) => respond
            .header(header::CONTENT_LENGTH, length)
            .body(Body::from_stream(tokio_stream::pending::<Result<Vec<u8>, std::io::Error>>())),
        Answers::WrongRange => respond
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, "bytes 0-1/2")
            .body(all.to_vec().into()),
    };
    response.unwrap()
}

/// A machine with one source and nothing installed.
struct Place {
    dir: tempfile::TempDir,
    source: Source,
    url: String,
    installation: Installation,
    serving: JoinHandle<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

impl Place {
    async fn new(files: &[(&str, &str)], script: &[Answers]) -> Self {
        let archive = Arc::new(archive(files));
        let sha256 = Sha256::of(&digest::digest(&digest::SHA256, &archive)).unwrap();
        let script = Arc::new(Mutex::new(script.iter().copied().collect()));
        let source = Source { archive, script, ranges: Arc::default() };
        let router = Router::new().fallback(answer).with_state(source.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/runner.tar.gz", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let dir = tempfile::tempdir().unwrap();
        let version = "2.336.0".parse().unwrap();
        let installation = Installation {
            runner_dir: dir.path().join("baked"),
            cache_dir: dir.path().join("cache"),
            version: Some(version),
            minimum: None,
            archive: Some(Archive { version, sha256, sources: vec![url.parse().unwrap()] }),
        };
        Self { dir, source, url, installation, serving }
    }

    async fn honest(script: &[Answers]) -> Self {
        Self::new(&[("bin/Runner.Listener", "#!/bin/sh\necho fetched\n")], script).await
    }

    async fn install(&self) -> Result<Installed, InstallError> {
        self.installation.install(&Linker::default(), true).await
    }

    fn archive(&mut self) -> &mut Archive {
        self.installation.archive.as_mut().unwrap()
    }

    fn requests(&self) -> usize {
        self.source.ranges.lock().unwrap().len()
    }

    /// A runner of this version in the image.
    fn bake(&self, version: &str) {
        let bin = self.installation.runner_dir.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("Runner.Listener"), "#!/bin/sh\n").unwrap();
        let manifest = format!(r#"{{"targets": {{"linux": {{"Runner.Listener/{version}": {{}}}}}}}}"#);
        std::fs::write(bin.join("Runner.Listener.deps.json"), manifest).unwrap();
        std::fs::set_permissions(bin.join("Runner.Listener"), PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn cached(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.installation.cache_dir).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[tokio::test]
async fn a_runner_is_fetched_once_and_older_ones_are_removed() {
    let place = Place::honest(&[Answers::Redirect]).await;
    let old = place.installation.cache_dir.join("runner-2.300.0-0123456789abcdef/bin");
    std::fs::create_dir_all(&old).unwrap();
    let installed = place.install().await.unwrap();
    assert_eq!(installed.origin, Origin::Source("127.0.0.1".into()));
    let listener = std::fs::read_to_string(installed.dir.join("bin/Runner.Listener")).unwrap();
    assert_eq!(listener, "#!/bin/sh\necho fetched\n");
    let entry = installed.dir.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(entry.starts_with("runner-2.336.0-"), "{entry}");
    assert_eq!(place.cached(), ["lock".to_owned(), entry]);
    let again = place.install().await.unwrap();
    assert_eq!((again.dir, again.origin), (installed.dir, Origin::Cache));
    assert_eq!(place.requests(), 2, "the redirect and the file, and never again");
}

#[tokio::test]
async fn the_images_runner_is_used_when_its_version_will_do() {
    let mut place = Place::honest(&[]).await;
    place.bake("2.336.0");
    assert_eq!(place.install().await.unwrap().origin, Origin::Image);
    place.bake("2.340.1");
    assert_eq!(place.install().await.unwrap().origin, Origin::Source("127.0.0.1".into()), "exactly, unless told so");
    place.installation.minimum = Some("2.330.0".parse().unwrap());
    assert_eq!(place.install().await.unwrap().origin, Origin::Image);
    place.bake("2.329.9");
    assert_eq!(place.install().await.unwrap().origin, Origin::Cache, "too old");
}

#[tokio::test]
async fn without_a_version_only_the_images_runner_counts() {
    let mut place = Place::honest(&[]).await;
    (place.installation.version, place.installation.archive) = (None, None);
    let error = place.install().await.unwrap_err().to_string();
    assert!(error.contains("runner-version and runner-sha256"), "{error}");
    place.bake("whatever");
    assert_eq!(place.install().await.unwrap().origin, Origin::Image);
    assert_eq!(place.requests(), 0);
}

/// As `miglet install` left it in the image.
#[tokio::test]
async fn what_was_installed_before_is_found_by_its_version_whoever_asks() {
    let mut place = Place::honest(&[]).await;
    let entry = place.install().await.unwrap().dir;
    place.installation.archive = None;
    let found = |present: Option<Installed>| present.map(|installed| (installed.dir, installed.origin));
    let there = Some((entry, Origin::Cache));
    for (version, minimum, expected) in [
        (None, None, &there),
        (Some("2.336.0"), None, &there),
        (Some("2.340.0"), None, &None),
        (None, Some("2.336.0"), &there),
        (None, Some("2.336.1"), &None),
        (Some("2.340.0"), Some("2.330.0"), &there),
    ] {
        let parse = |text: Option<&str>| text.map(|text| text.parse::<Version>().unwrap());
        (place.installation.version, place.installation.minimum) = (parse(version), parse(minimum));
        assert_eq!(&found(place.installation.present()), expected, "{version:?} {minimum:?}");
    }
    let error = place.install().await.map(|installed| installed.dir);
    assert_eq!(place.requests(), 1, "{error:?}");
    place.installation.minimum = Some("2.336.1".parse().unwrap());
    let error = place.install().await.unwrap_err().to_string();
    assert!(error.contains("2.336.1 or later") && error.contains("spec.runner.checksums"), "{error}");
}

#[tokio::test]
async fn another_archive_of_the_same_version_is_another_runner() {
    let mut place = Place::honest(&[]).await;
    place.install().await.unwrap();
    place.archive().sha256 = "0".repeat(64).parse().unwrap();
    assert_eq!(place.installation.present(), None);
}

#[tokio::test]
async fn a_torn_download_goes_on_where_it_ended() {
    let place = Place::honest(&[Answers::Torn(40)]).await;
    let error = place.install().await.unwrap_err();
    assert!(matches!(error, InstallError::Sources { .. }), "{error}");
    place.install().await.unwrap();
    assert_eq!(*place.source.ranges.lock().unwrap(), [None, Some("bytes=40-".to_owned())]);
}

#[tokio::test]
async fn a_download_that_was_complete_is_not_fetched_again() {
    let mut place = Place::honest(&[]).await;
    std::fs::create_dir(&place.installation.cache_dir).unwrap();
    let name = format!("{}.part", place.archive().sha256);
    let part = place.installation.cache_dir.join(name);
    std::fs::write(part, place.source.archive.as_slice()).unwrap();
    place.install().await.unwrap();
    assert_eq!(place.requests(), 0);
}

#[tokio::test]
async fn the_next_source_is_tried_when_one_fails_or_lies() {
    for failure in [Answers::NotFound, Answers::Wrong, Answers::Torn(10)] {
        let mut place = Place::honest(&[failure]).await;
        let url: Uri = place.url.parse().unwrap();
        place.archive().sources = vec!["http://127.0.0.1:1/nobody".parse().unwrap(), url.clone(), url];
        place.install().await.unwrap_or_else(|error| panic!("{failure:?}: {error}"));
    }
}

#[tokio::test]
async fn what_is_not_the_wanted_file_is_never_unpacked_nor_kept() {
    let place = Place::honest(&[Answers::Wrong]).await;
    let error = place.install().await.unwrap_err().to_string();
    assert!(error.contains("gave a file with SHA-256") && error.contains("127.0.0.1"), "{error}");
    assert_eq!(place.cached(), ["lock"]);
}

#[tokio::test]
async fn an_answer_that_would_mix_files_is_refused() {
    let place = Place::honest(&[Answers::Torn(40), Answers::WrongRange]).await;
    place.install().await.unwrap_err();
    let error = place.install().await.unwrap_err().to_string();
    assert!(error.contains("range that was not asked for"), "{error}");
    place.install().await.unwrap();
}

/// Claimed by the source, so large that the ratio and not the floor counts, and what it may unpack to.
const LENGTH: u64 = 100_000_000;
const UNPACKED: u64 = 500_000_000;

type FreeSpace = fn(&Path) -> Option<u64>;

async fn download(place: &mut Place, free_space: FreeSpace) -> Result<(), DownloadError> {
    let client = Client::new().unwrap();
    let (part, wanted) = (place.dir.path().join("part"), place.archive().sha256);
    let download = download::Download { client: &client, part, wanted, free_space };
    download.from(&place.url.parse().unwrap()).await
}

#[tokio::test]
async fn a_runner_too_large_for_the_disk_is_not_begun() {
    let cases: [(_, FreeSpace, _); 3] = [
        ("100000000", |_| Some(UNPACKED), "may need 600000000"),
        ("100000000", |_| Some(UNPACKED + LENGTH - 1), "may need 600000000"),
        ("99999999999", |_| Some(u64::MAX), "offers more than"),
    ];
    for (length, free_space, why) in cases {
        let mut place = Place::honest(&[Answers::Length(length)]).await;
        let error = download(&mut place, free_space).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!place.dir.path().join("part").exists());
    }
}

#[tokio::test]
async fn a_runner_that_just_fits_is_begun() {
    let mut place = Place::honest(&[Answers::Length("100000000")]).await;
    let part = place.dir.path().join("part");
    let begun = async {
        while !part.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = download(&mut place, |_| Some(UNPACKED + LENGTH)) => panic!("nothing was sent: {done:?}"),
        () = begun => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("never begun"),
    }
}

/// The source says no length, so there is nothing to be checked before.
#[tokio::test]
async fn a_runner_that_was_fetched_is_not_unpacked_without_room_for_it() {
    let mut place = Place::honest(&[Answers::Chunked]).await;
    let error = download(&mut place, |_| Some(64 * 1024 * 1024 - 1)).await.unwrap_err();
    assert!(matches!(error, DownloadError::Space { needed: 67_108_864, .. }), "{error}");
    let part = place.dir.path().join("part");
    assert_eq!(part.metadata().unwrap().len(), place.source.archive.len() as u64, "kept for when there is room");
    download(&mut place, |_| Some(64 * 1024 * 1024)).await.unwrap();
    assert_eq!(place.requests(), 1);
}

#[tokio::test]
async fn a_verified_archive_is_still_not_trusted() {
    let place = Place::new(&[("bin/Runner.Listener", "x"), ("../../evil", "x")], &[]).await;
    let error = crate::error::in_full(&place.install().await.unwrap_err());
    assert!(error.contains("leads out of the archive"), "{error}");
    assert!(!place.cached().iter().any(|name| name.starts_with("runner-")));
    assert!(!place.dir.path().join("evil").exists());
}

#[tokio::test]
async fn an_archive_without_a_runner_is_not_installed() {
    let place = Place::new(&[("README", "x")], &[]).await;
    let error = crate::error::in_full(&place.install().await.unwrap_err());
    assert!(error.contains("no executable bin/Runner.Listener"), "{error}");
    assert!(!place.cached().iter().any(|name| name.starts_with("runner-")));
}

#[tokio::test]
async fn two_installations_do_not_get_into_each_others_way() {
    let place = Place::honest(&[]).await;
    let lock = cache::Cache::new(&place.installation.cache_dir).lock().unwrap();
    let error = crate::error::in_full(&place.install().await.unwrap_err());
    assert!(error.contains("under way"), "{error}");
    drop(lock);
    place.install().await.unwrap();
}
