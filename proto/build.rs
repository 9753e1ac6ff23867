//! Compiles the protocol with protox, so that nobody needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/miglet/agent/v1/agent.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    // These hold secrets: src/lib.rs says what may be printed of them.
    let secret = ["miglet.agent.v1.RegisterRunner", "miglet.agent.v1.Hello"];
    tonic_prost_build::configure()
        .skip_debug(secret)
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
