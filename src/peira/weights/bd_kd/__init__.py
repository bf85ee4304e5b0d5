"""BD-KD: balancing the divergences for online knowledge distillation (Amara et al. 2022)."""
