"""Turn a checkpoint of the original release into a run directory, or a run into such a checkpoint.

python tools/import_official.py --checkpoint=checkpoint_24.pth --config=ve/cifar10_ncsnpp_continuous
--workdir=runs/ncsnpp python tools/import_official.py --workdir=runs/ncsnpp --export=checkpoint.pth
"""

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "Original .pth file to import.")
flags.DEFINE_string("config", None, "Published configuration it belongs to; may be left out where the tensors tell it.")
flags.DEFINE_string("workdir", None, "Run directory to make, or to export.", required=True)
flags.DEFINE_string("export", None, "Original .pth file to write from the run in --workdir.")


def main(argv: list[str]) -> None:
    if (FLAGS.checkpoint is None) == (FLAGS.export is None):
        raise app.UsageError("Give either --checkpoint (import) or --export.")
    from sde_score.run.import_official import export_official, import_official

    try:
        if FLAGS.export:
            export_official(FLAGS.workdir, FLAGS.export)
            print(f"Wrote {FLAGS.export}.")
        else:
            run = import_official(FLAGS.checkpoint, FLAGS.workdir, FLAGS.config)
            print(f"Wrote {FLAGS.workdir}: {run.config.published.name}, step {run.step}.")
    except (ValueError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    app.run(main)
