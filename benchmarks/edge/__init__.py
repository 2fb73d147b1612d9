"""The paper's figure 6: what two edge centres beside a central one save, on hosts and links that the kernel shapes."""
