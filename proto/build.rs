//! Compiles the `.proto` files without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/payer.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    let descriptors = protox::compile(["proto/node.proto"], ["proto"])?;
    prost_build::Config::new()
        .extern_path(".vineyard.payer.v1", "crate::payer")
        .compile_fds(descriptors)?;
    let descriptors = protox::compile(["proto/admin.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    #[cfg(feature = "csi")]
    csi::compile()?;
    Ok(())
}

#[cfg(feature = "csi")]
mod csi {
    use std::collections::BTreeMap;
    use std::fmt::Write;
    use std::path::Path;

    use protox::prost_reflect::{DescriptorPool, FieldDescriptor};

    /// Services and messages of CSI and of the registration with kubelet.
    pub(super) fn compile() -> Result<(), Box<dyn std::error::Error>> {
        let mut compiler = protox::Compiler::new(["proto"])?;
        compiler.include_imports(true);
        compiler.open_files(["csi/v1/csi.proto", "pluginregistration/v1/api.proto"])?;
        let bearers = secret_bearers(&compiler.descriptor_pool())?;
        tonic_prost_build::configure()
            .disable_comments(["."])
            .skip_debug(bearers.keys().map(|name| format!("csi.v1.{name}")))
            .compile_fds(compiler.file_descriptor_set())?;
        let out = std::env::var("OUT_DIR")?;
        std::fs::write(Path::new(&out).join("csi.redacted.rs"), debug_of(&bearers))?;
        Ok(())
    }

    /// Fields of each message that has a secret one, and whether they are secret.
    type Bearers = BTreeMap<String, Vec<(String, bool)>>;

    /// Finds the messages with a field that is marked `csi_secret`.
    fn secret_bearers(pool: &DescriptorPool) -> Result<Bearers, &'static str> {
        let mark = pool
            .get_extension_by_name("csi.v1.csi_secret")
            .ok_or("csi.proto has no csi_secret")?;
        let is_secret =
            |field: &FieldDescriptor| field.options().get_extension(&mark).as_bool() == Some(true);
        let mut bearers = BTreeMap::new();
        for message in pool.all_messages() {
            let fields: Vec<_> = message
                .fields()
                .map(|f| (f.name().to_owned(), is_secret(&f)))
                .collect();
            if fields.iter().any(|(_, secret)| *secret) {
                bearers.insert(message.name().to_owned(), fields);
            }
        }
        Ok(bearers)
    }

    /// `Debug` that says how many secrets there are and nothing else about them.
    fn debug_of(bearers: &Bearers) -> String {
        let mut code = String::new();
        for (name, fields) in bearers {
            let _ = write!(
                code,
                "impl ::core::fmt::Debug for {name} {{ \
                 fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{ \
                 f.debug_struct({name:?})"
            );
            for (field, secret) in fields {
                let _ = match secret {
                    true => write!(
                        code,
                        ".field({field:?}, &super::Redacted(self.{field}.len()))"
                    ),
                    false => write!(code, ".field({field:?}, &self.{field})"),
                };
            }
            code.push_str(".finish() } }\n");
        }
        code
    }
}
