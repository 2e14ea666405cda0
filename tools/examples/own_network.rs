//! A custom network, trained with the library: killed at any moment, it resumes and ends with the same bits.
//!
//! ```sh
//! cargo run --release --example own_network -- runs/own
//! ```
//!
//! Run again with the same folder, it resumes. Images are drawn during training, into `samples/`.

use std::path::{Path, PathBuf};

use engine::Result;
use engine::config::Config;
use engine::diffusion::Denoiser;
use engine::model_file::ModelFile;
use engine::models::CustomConfig;
use engine::nn::{Builder, Conv2d, Embedding, Mlp, Scope};
use engine::ops::elementwise::{cast, silu};
use engine::ops::linear::Activation;
use engine::ops::timestep_embedding::timestep_embedding;
use engine::tape::Var;
use engine::tensor::{Context, DType};
use engine::train::{Denoise, Event, Summary, TrainRequest, train};

/// Three convolutions; time and class are added after the first.
struct Tiny {
    time: Mlp,
    class: Embedding,
    convolutions: [Conv2d; 3],
}

impl Tiny {
    fn new(builder: &mut Builder) -> Result<Self> {
        Ok(Self {
            time: Mlp::new(builder, "time", [16, 32, 32], Activation::Silu),
            class: Embedding::new(builder, "class", 11, 32),
            convolutions: [(3, 32), (32, 32), (32, 3)]
                .map(|(from, to)| Conv2d::new(builder, &format!("conv.{from}.{to}"), from, to, 3)),
        })
    }
}

impl Denoiser for Tiny {
    fn image_shape(&self) -> [usize; 3] {
        [32, 32, 3]
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        let [first, middle, last] = &self.convolutions;
        let class = self.class.forward(s, labels)?;
        let time = timestep_embedding(s, time, 16, s.precision())?;
        let condition = self.time.residual(&class).forward(s, &time)?;
        let h = silu(s, &first.channel_add(&condition).forward(s, &cast(s, x, s.precision())?)?)?;
        let h = silu(s, &middle.residual(&h).forward(s, &h)?)?;
        cast(s, &last.forward(s, &h)?, DType::F32)
    }
}

/// The task: this network, trained with the diffusion loss of the configuration.
pub fn task() -> Denoise {
    // The null label is number 10, the eleventh of the embedding.
    let model = CustomConfig { name: "tiny".into(), num_classes: 10, null_label: true, ..CustomConfig::default() };
    Denoise::new(model, Tiny::new)
}

/// Starts the run in `folder`, or resumes it.
pub fn run(folder: &Path, settings: &[&str]) -> Result<Summary> {
    let request = if folder.join("config.yaml").exists() {
        TrainRequest::resume(folder)
    } else {
        let mut config = Config::preset("quickstart")?;
        settings.iter().try_for_each(|setting| config.set(setting))?;
        TrainRequest { out: Some(folder.into()), ..TrainRequest::new("own", config) }
    };
    train(request.with_task(task()), &mut |event| {
        if let Event::Logged(line) = event {
            println!("step {}: loss {:.4}, {:.0} images/s", line.step, line.loss, line.images_per_second);
        }
    })
}

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("runs/own"), PathBuf::from);
    let summary = run(&folder, &["training.num_steps=300"])?;
    println!("samples  {}\nmodel    {}", summary.samples.display(), summary.model.display());
    // With the code, the file can be used like any other.
    let model = task().load(ModelFile::open(&summary.model)?, &Context::cpu(), DType::F32)?;
    let images = model.sample(&model.request([0, 1, 2]))?;
    println!("drew {} images of {} values from it", images.len(), images[0].len());
    Ok(())
}
