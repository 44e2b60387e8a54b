"""What users of other trainers type, and what it is called here."""

import re
from collections.abc import Collection

from reca_fast.errors import did_you_mean

HABITS: dict[str, tuple[str, str]] = {
    "learning_rate base_lr max_lr peak_lr": ("optim.lr", ""),
    "batch_size train_batch_size per_device_train_batch_size micro_batch_size global_batch_size bs": (
        "data.tokens_per_pack",
        "A batch is a pack of so many tokens; data.packs_per_step sets how many packs make one step.",
    ),
    "gradient_accumulation_steps grad_accum_steps grad_accum accumulate_grad_batches accumulation_steps": (
        "data.packs_per_step",
        "It counts the packs of one step over all processes; what does not run at once is accumulated.",
    ),
    "epochs num_epochs num_train_epochs n_epochs max_epochs": ("steps", "A run is as long as its optimizer steps."),
    "max_steps num_steps n_steps total_steps train_steps max_train_steps iterations max_iters": ("steps", ""),
    "output_dir out_dir output output_path output_folder save_dir save_path results_dir exp_dir": (
        "out",
        "",
    ),
    "data_path data_dir data_root dataset dataset_name dataset_path train_data_dir train_data images image_folder "
    "input": ("data.source", ""),
    "model_name_or_path pretrained_model_name_or_path model_path model_dir model_name model_id base_model checkpoint "
    "ckpt ckpt_path": ("model.path", ""),
    "bf16 fp16 fp32 mixed_precision dtype torch_dtype": ("model.precision", "It is bf16 or fp32."),
    "resume_from_checkpoint resume_from resume_ckpt auto_resume load_checkpoint": (
        "resume",
        "A run goes on by itself from the newest checkpoint in its out folder: start the same command again.",
    ),
    "wandb use_wandb wandb_project wandb_name report_to tensorboard log_with": (
        "",
        "Metrics go to metrics.jsonl and to TensorBoard events in the run folder; no option is needed.",
    ),
    "num_warmup_steps warmup warmup_ratio lr_warmup_steps": ("optim.warmup_steps", "It counts steps."),
    "lr_scheduler lr_scheduler_type scheduler lr_schedule": ("optim.schedule", ""),
    "min_lr min_lr_rate min_lr_factor lr_min eta_min": ("optim.min_lr_ratio", "It is a share of optim.lr."),
    "wd": ("optim.weight_decay", ""),
    "adam_beta1 adam_beta2 beta1 beta2": ("optim.betas", "It holds both: [0.9, 0.95]."),
    "adam_epsilon adam_eps epsilon": ("optim.eps", ""),
    "grad_clip clip_grad_norm clip_grad gradient_clip_val max_norm": ("optim.max_grad_norm", ""),
    "ema ema_rate use_ema": ("optim.ema_decay", ""),
    "gradient_checkpointing activation_checkpointing grad_checkpointing": ("memory.recompute", ""),
    "torch_compile": ("memory.compile", ""),
    "attn_implementation use_flash_attention flash_attn use_flash_attn": ("model.attention", ""),
    "num_workers dataloader_num_workers n_workers": ("data.workers", ""),
    "save_steps save_interval save_freq checkpoint_every ckpt_every": ("save_every", ""),
    "logging_steps log_interval log_freq print_every": ("log_every", ""),
    "eval_steps eval_every sample_steps": ("sample_every", ""),
    "save_total_limit max_checkpoints": ("keep", ""),
    "resolution image_size img_size": ("data.target_resize.max_size", ""),
    "cfg cfg_scale cfg_text_scale guidance_scale": ("sampling.guidance", ""),
    "num_inference_steps inference_steps": ("sampling.steps", ""),
    "num_timesteps": ("sampling.steps", "It counts evaluations of the model, one less than num_timesteps."),
    "random_seed global_seed manual_seed": ("seed sampling.seed", ""),
    "text caption": ("prompt", ""),
    "gpu gpus gpu_id gpu_ids cuda use_cuda": ("device", "It is auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses GPUs."),
    "fsdp deepspeed ddp distributed num_gpus nproc_per_node num_processes world_size": (
        "",
        "Started by torchrun, processes share the model by themselves (FSDP2).",
    ),
    "config_file recipe yaml cfg_file": ("config", ""),
}
"""Names elsewhere -> (the options here, the first that the verb has is meant; a sentence that helps)."""
MEANT = {name: meant for names, meant in HABITS.items() for name in names.split()}


def suggestion(name: str, options: Collection[str]) -> str:
    """' Did you mean ...?' and what else helps who typed `name`, or an empty string.

    By habit first, then by the last part of a dotted name, then by likeness.
    """
    plain = re.sub(r"\W", "_", name.rpartition(".")[2].lower())
    targets, sentence = MEANT.get(plain, ("", ""))
    target = next((option for option in targets.split() if option in options), "")
    if target or (sentence and not targets):
        return (f" Did you mean {target!r}?" if target else "") + (f" {sentence}" if sentence else "")
    same = [option for option in options if option.rpartition(".")[2] == plain]
    return f" Did you mean {same[0]!r}?" if len(same) == 1 else did_you_mean(name, options)
