"""Who acts in a closed loop: policies of any kind behind one small protocol."""
