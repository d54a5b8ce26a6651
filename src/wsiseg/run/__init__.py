"""What every run shares: its record, its outputs, its memory, its errors."""
